"""First, second and third start in one home, several ranks, warm starts: each serves as plain vLLM does."""

import signal

import psutil
import pytest

from tests.gpu_stub.stub_server import EAGER
from tests.vllm_engine.vllm_server import title_of

_PREFIX = "serves with vLLM's CUDA build; no kernel runs"


def _check(server) -> None:
    """It answers, and nothing is forked from a process that has initialized CUDA."""
    assert server.wait_ready().answers(), _PREFIX
    family = server.family()
    initializers = server.initializers()
    assert initializers
    parents = {process.ppid() for process in family if process.is_running()}
    assert not initializers & parents - {p.pid for p in family if title_of(p).startswith(("EngineCore", "Worker"))}
    assert server.terminate(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    "words", [pytest.param((EAGER,), id="eager", marks=pytest.mark.ci_vllm), pytest.param((), id="compiled")]
)
def test_every_start_in_one_home_serves(start_stub, words):
    """FlashInfer and CUTLASS initialize CUDA while they are imported: that must not be in a forkserver."""
    for _ in range(3):
        with start_stub("ours", *words) as server:
            _check(server)
        assert "Cannot re-initialize CUDA" not in server.log
        assert "starts again" not in server.log


@pytest.mark.parametrize("launcher", ["plain", "ours"])
@pytest.mark.parametrize(
    ("words", "num_gpus"),
    [
        pytest.param(("--tensor-parallel-size", "3"), 3, id="TP 3"),
        pytest.param(("--pipeline-parallel-size", "2"), 2, id="PP 2"),
        pytest.param(("--data-parallel-size", "2"), 2, id="DP 2"),
    ],
)
def test_several_ranks_serve(start_stub, launcher, words, num_gpus):
    for _ in range(1 if launcher == "plain" else 2):
        with start_stub(launcher, EAGER, *words, environment={"STUB_GPUS": str(num_gpus)}) as server:
            assert server.wait_ready().answers(), _PREFIX
            assert len(server.initializers()) >= num_gpus
            assert server.terminate(signal.SIGTERM) == 0


@pytest.mark.ci_vllm
def test_two_ranks_serve_in_a_second_start(start_stub):
    for _ in range(2):
        with start_stub("ours", EAGER, "--pipeline-parallel-size", "2", environment={"STUB_GPUS": "2"}) as server:
            assert server.wait_ready().answers(), _PREFIX
            assert [title_of(worker) for worker in server.titled("Worker")] == ["Worker_PP0", "Worker_PP1"]
            assert server.terminate(signal.SIGTERM) == 0


@pytest.mark.parametrize("words", [pytest.param((EAGER,), id="eager"), pytest.param((), id="compiled")])
def test_a_start_from_a_standby_serves(start_stub, words):
    with start_stub("ours", *words) as server:
        server.wait_ready()
    with start_stub("warm", *words) as server:
        assert server.wait_ready().answers(), _PREFIX
        assert "warm start: forked from the standby's process" in server.log


def test_a_killed_engine_is_started_again(start_stub):
    with start_stub("ours", EAGER, "--restart", "on-failure") as server:
        server.wait_ready()
        (engine,) = server.titled("EngineCore")
        engine.kill()
        psutil.wait_procs([engine], 60)
        server.wait(lambda: server.health() == 200 and engine not in server.titled("EngineCore"))
        assert server.answers(), _PREFIX
        assert server.terminate(signal.SIGTERM) == 0
