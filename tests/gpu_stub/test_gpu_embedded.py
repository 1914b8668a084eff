"""The embedded engine with torch for CUDA starts, answers, keeps limits of the GPU's memory, and ends."""

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.gpu_stub.gpu_server import EAGER, GpuServer

_LIMITS = EAGER[1:]
_GIB = 1 << 30


class _Embedded(GpuServer):
    engine = "embedded"


@pytest.mark.ci_vllm
def test_the_engine_serves_on_the_gpu_in_two_starts(home):
    for _ in range(2):
        with _Embedded("ours", *_LIMITS, folder=home) as server:
            server.wait_ready()
            with ThreadPoolExecutor() as pool:
                assert len(set(pool.map(lambda _: server.generate(), range(8)))) == 1
            assert " on cuda:0: " in server.log
            assert len(server.initialized()) == 1
            assert server.terminate(signal.SIGTERM) == 0


@pytest.mark.parametrize("memory", [2, 3])
def test_the_kv_cache_leaves_the_rest_of_a_small_gpu(home, memory):
    with _Embedded("ours", *_LIMITS, folder=home, environment={"STUB_MEMORY": str(memory * _GIB)}) as server:
        assert server.wait_ready().generate()
        assert 0 < server.used_bytes()[0] < memory * _GIB


@pytest.mark.parametrize(
    ("words", "memory", "told"),
    [
        pytest.param((), 700_000_000, "the weights take 0.251 GiB, and ", id="weights"),
        pytest.param(("--gpu-memory-utilization", "0.01"), 80 * _GIB, "of KV cache and 0 GiB are free", id="KV cache"),
    ],
)
def test_a_model_without_room_is_refused(home, words, memory, told):
    with _Embedded("ours", *_LIMITS, *words, folder=home, environment={"STUB_MEMORY": str(memory)}) as server:
        assert server.process.wait(60) == 3
    (cause,) = (line for line in server.log.splitlines() if line.startswith("Cause: "))
    assert told in cause
    assert "Traceback" not in server.log
