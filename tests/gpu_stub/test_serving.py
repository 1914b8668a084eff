"""Sleep, drain, ends and hangs of vLLM's CUDA build on the stand-in, on which no kernel runs."""

import os
import signal
import time

import pytest

from tests.gpu_stub.stub_server import EAGER
from tests.support.openai_client import StreamReader
from tests.support.waiting import is_gone, wait_until

_GONE_S = 1.0
_END_S = 60.0
_GIB = 1 << 30
_SLOW = {"STUB_LAUNCH_US": "50"}
"""A kernel takes this long: streams last some seconds."""


@pytest.mark.parametrize("launcher", ["plain", "ours"])
def test_a_server_sleeps_and_wakes_up(start_stub, launcher):
    """Fails with "named symbol not found" if a package has loaded NVIDIA's own runtime."""
    variables = {"VLLM_SERVER_DEV_MODE": "1"}
    with start_stub(launcher, EAGER, "--enable-sleep-mode", environment=variables) as server:
        awake_bytes = server.wait_ready().used_bytes()
        assert awake_bytes > 60 * _GIB
        for level in (1, 2):
            assert server.ask(f"/sleep?level={level}", {}).status == 200
            assert server.used_bytes() < 2 * _GIB
            assert server.ask("/wake_up", {}).status == 200
            assert server.used_bytes() > 60 * _GIB
        assert server.answers()


def test_streams_finish_in_a_drain(start_stub):
    with start_stub("ours", EAGER, environment=_SLOW) as server:
        server.wait_ready()
        streams = [StreamReader(server.url, 200) for _ in range(3)]
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.health() == 503)
        for stream in streams:
            *_, last, end = stream.finish()
            assert last["choices"][0]["finish_reason"] == "length"
            assert end is None
        assert server.process.wait(_END_S) == 0


_PHASES = ("", "Initializing a V1 LLM engine", "Starting to load model", "GPU KV cache size")


@pytest.mark.alone
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("line", _PHASES, ids=["imports", "engine", "load", "KV cache"])
def test_nothing_outlives_a_stopped_start_by_a_second(start_stub, home, line, number):
    with start_stub("ours", EAGER, home=home) as server:
        if line:
            server.wait_logged(line)
        else:
            server.wait_status(503)
        _end(server, number)


@pytest.mark.alone
def test_nothing_outlives_a_killed_server_by_a_second(start_stub):
    with start_stub("ours", EAGER) as server:
        server.wait_ready()
        _end(server, signal.SIGKILL)


def _end(server, number: int) -> None:
    family = server.family()
    os.kill(server.process.pid, number)
    begin_s = time.monotonic()
    while left := [process for process in family if not is_gone(process.pid)]:
        server.process.poll()
        assert time.monotonic() - begin_s < _GONE_S, left
        time.sleep(0.005)


def test_a_killed_worker_ends_the_server(start_stub):
    words = (EAGER, "--pipeline-parallel-size", "2")
    with start_stub("ours", *words, environment={"STUB_GPUS": "2"}) as server:
        server.wait_ready()
        server.titled("Worker_PP1")[0].kill()
        assert server.process.wait(_END_S) == 1


@pytest.mark.alone
def test_a_hung_gpu_ends_the_server_and_the_digest_names_the_place(start_stub, tmp_path):
    hang = tmp_path / "hang"
    words = (EAGER, "--engine-watchdog-timeout", "10")
    with start_stub("ours", *words, environment={"STUB_HANG": str(hang)}) as server:
        assert server.wait_ready().answers()
        hang.touch()
        stream = StreamReader(server.url, 200)
        assert server.process.wait(_END_S) == 1
        *_, last, _ = stream.finish()
        assert "The engine hangs" in last["error"]["message"]
    assert "the engine hung: EngineHangError" in server.log


def test_a_failing_gpu_ends_the_server(start_stub, tmp_path):
    fail = tmp_path / "fail"
    with start_stub("ours", EAGER, environment={"STUB_FAIL": str(fail)}) as server:
        assert server.wait_ready().answers()
        fail.touch()
        server.ask("/v1/completions", {"prompt": "a", "max_tokens": 4})
        assert server.process.wait(_END_S) == 1
    assert "illegal memory access" in server.log
