"""Several ranks: each worker has initialized CUDA itself, in the first and in the second start of a home."""

import signal

import pytest

from tests.gpu_stub.gpu_server import EAGER, GpuServer

_TP = "--tensor-parallel-size"
_RANKS = [
    pytest.param((_TP, "3"), ["Worker_TP0", "Worker_TP1", "Worker_TP2"], id="TP 3", marks=pytest.mark.ci_vllm),
    pytest.param(("--pipeline-parallel-size", "2"), ["Worker_PP0", "Worker_PP1"], id="PP 2"),
    pytest.param(("--data-parallel-size", "2"), ["Worker", "Worker"], id="DP 2"),
]


@pytest.mark.parametrize(("words", "titles"), _RANKS)
def test_ranks_start_twice_in_a_home(tmp_path, words, titles):
    for _ in range(2):
        with GpuServer("ours", *EAGER, *words, folder=tmp_path, environment={"STUB_GPUS": words[1]}) as server:
            server.wait_ready()
            assert len({server.generate() for _ in range(4)}) == 1
            workers = server.assert_only(titles)
            assert all(server.is_forked(worker) for worker in workers)
            assert server.terminate(signal.SIGTERM) == 0
        assert "Re-initialize" not in server.log
