"""A pooling model, and a model that stops without requests: both start again in the same home."""

import signal

from tests.gpu_stub.gpu_server import EAGER, GpuServer

_POOLING = ("--runner", "pooling", "--convert", "embed")
_HIDDEN_SIZE = 576
_FEW_BYTES = 1 << 30


def test_a_pooling_model_starts_twice_and_answers(tmp_path):
    for _ in range(2):
        with GpuServer("ours", *EAGER, *_POOLING, folder=tmp_path) as server:
            answer = server.wait_ready().post("/v1/embeddings", input=["a cat", "the dog"])
            assert [row["index"] for row in answer["data"]] == [0, 1]
            assert {len(row["embedding"]) for row in answer["data"]} == {_HIDDEN_SIZE}
            [engine] = server.assert_only(["EngineCore"])
            assert server.is_forked(engine)
            assert server.terminate(signal.SIGTERM) == 0


def test_a_model_stops_without_requests_and_a_request_starts_it(tmp_path):
    with GpuServer("ours", *EAGER, "--idle-stop", "2s", folder=tmp_path) as server:
        text = server.wait_ready().generate()
        for _ in range(2):
            server.wait(lambda: server.ask("/health").headers.get("model-state") == "stopped")
            assert server.used_bytes() < _FEW_BYTES
            assert server.generate() == text
        assert server.terminate(signal.SIGTERM) == 0
