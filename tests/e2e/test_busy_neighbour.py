"""The engine leaves a processor that another process uses, and comes back to it."""

import os
import subprocess
import sys

import pytest

from tests.e2e.server_process import ServerProcess
from tests.http_answer import ask
from tests.waiting import wait_until

_CHANGE_S = 300.0
_REQUEST = {"prompt": "Once", "n": 16, "max_tokens": 16, "ignore_eos": True}
"""Steps of 16 rows, which two threads compute faster than one."""
_BURN = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"

needs_two_processors = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")


def _wait_threads(server: ServerProcess, number: int) -> None:
    """Sends requests until the engine computes with this number of threads."""

    def has_number() -> bool:
        assert ask(f"{server.url}/v1/completions", _REQUEST).status == 200
        return server.metric("vllm_cli:engine_threads") == number

    wait_until(has_number, _CHANGE_S)


@needs_two_processors
@pytest.mark.slow  # on a machine that nothing else uses: with other busy processes, one thread may stay the best
def test_a_thread_leaves_a_busy_processor_and_returns(model_path):
    busy, other = sorted(os.sched_getaffinity(0))[:2]
    words = [str(model_path), "--max-model-len", "256"]
    with ServerProcess(words, launcher=("taskset", "-c", f"{busy},{other}")) as server:
        _wait_threads(server, 2)
        neighbour = subprocess.Popen([sys.executable, "-c", _BURN, str(busy)])
        try:
            _wait_threads(server, 1)
        finally:
            neighbour.kill()
            neighbour.wait()
        _wait_threads(server, 2)
        server.wait_logged("computing with 1 of 2 threads")


@needs_two_processors
@pytest.mark.alone
def test_the_users_number_of_threads_stays(model_path):
    words = [str(model_path), "--max-model-len", "256"]
    busy = min(os.sched_getaffinity(0))
    neighbour = subprocess.Popen([sys.executable, "-c", _BURN, str(busy)])
    try:
        with ServerProcess(words, environment={"OMP_NUM_THREADS": "2"}) as server:
            for _ in range(3):
                assert server.complete(max_tokens=16) == 200
                assert server.metric("vllm_cli:engine_threads") == 2
            assert "computing with" not in server.log
    finally:
        neighbour.kill()
        neighbour.wait()
