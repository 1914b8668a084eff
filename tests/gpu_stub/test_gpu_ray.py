"""Workers that Ray starts: two starts in a home answer, and SIGTERM ends them with all processes of Ray."""

import signal

import pytest

from tests.gpu_stub.gpu_server import EAGER, GpuServer
from tests.vllm_engine.ray_node import RAY


@pytest.mark.skipif(not RAY.exists(), reason="Ray is not installed in .peers/ray")
@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("--tensor-parallel-size", "3", "--distributed-executor-backend", "ray"), id="TP 3"),
        pytest.param(("--data-parallel-size", "2", "--data-parallel-backend", "ray"), id="DP 2"),
    ],
)
def test_workers_of_ray_start_twice_and_end(tmp_path, words):
    environment = {"STUB_GPUS": words[1], "PYTHONPATH": str(RAY), "RAY_USAGE_STATS_ENABLED": "0"}
    for _ in range(2):
        with GpuServer("ours", *EAGER, *words, folder=tmp_path, environment=environment) as server:
            assert len({server.wait_ready().generate() for _ in range(4)}) == 1
            assert server.terminate(signal.SIGTERM) == 0
