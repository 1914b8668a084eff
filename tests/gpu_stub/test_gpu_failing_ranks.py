"""A rank fails while CUDA graphs are captured after readiness: nothing hangs, and no start fails twice.

On the stand-in, ranks wait for each other as on GPUs. No kernel runs.
"""

import json
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.gpu_stub.gpu_router import beside, take_memory
from tests.gpu_stub.gpu_server import PYTHON, GpuServer, gpu_variables
from tests.gpu_stub.recipe_models import save_llama
from tests.support.cli import run_cli
from tests.support.standby_process import StandbyProcess
from tests.support.waiting import wait_until

_TP, _PP = ("--tensor-parallel-size", "2"), ("--pipeline-parallel-size", "2")
_EACH_GROUP: Final = pytest.mark.parametrize("group", [_TP, _PP], ids=["TP 2", "PP 2"])
_DECODE: Final = json.dumps({"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"})
_WORDS: Final = ("--max-model-len", "2048", "--cuda-graphs", "after-ready", "--compilation-config", _DECODE)
_BEGIN, _END = "cudaStreamBeginCapture 20", "cudaStreamEndCapture 20"
"""A rank's 20th capture comes after readiness: few of the 51 graphs are captured before."""
_END_S: Final = 240.0
"""Less than the watchdog's 300 s, so that another part of the product has ended the engine."""
_EARLY: Final = "CUDA graphs are captured before vLLM is ready: in an earlier start, "
_GPUS: Final = {"STUB_GPUS": "2"}


@pytest.fixture(scope="module")
def template(home: Path) -> Iterator[StandbyProcess]:
    """A standby that forks all starts of this module, because most of a start are imports."""
    with StandbyProcess("--for", "vllm-compiled", environment=gpu_variables(home), python=PYTHON) as standby:
        save_llama(home)
        yield standby


@pytest.fixture
def faults(home: Path) -> Path:
    """The file with the calls that fail."""
    return home / "faults"


@pytest.fixture
def start(home: Path, template: StandbyProcess, faults: Path):
    """Starts a model that two ranks can share. No start before the first one has failed."""
    environment = {**_GPUS, "STUB_FAIL": str(faults), "VLLM_SKIP_P2P_CHECK": "1", **template.environment}
    shutil.rmtree(home / "cache" / "vllm_cli" / "graph-memory", ignore_errors=True)
    yield lambda *words: GpuServer("ours", *_WORDS, *words, folder=home, model=home, environment=environment)
    faults.unlink(missing_ok=True)
    wait_until(lambda: not any(process.children() for process in template.templates()))


def _num_faults(home: Path) -> int:
    """How many faults have begun since the latest start."""
    return (home / "cuda.log").read_text().count("(fault)")


def _assert_answers(server: GpuServer) -> None:
    assert server.usage()["completion_tokens"] == server.MAX_TOKENS


@_EACH_GROUP
def test_a_slow_rank_and_a_rank_short_of_memory_delay_captures(start, home, faults, group):
    """Each rank hangs in a capture, goes on, and has too little memory for the next one."""
    faults.write_text(f"0 {_BEGIN} hang")
    with start(*group) as server:
        server.wait_ready()
        for rank in (0, 1):
            with beside(take_memory(rank), gpu_variables(home) | _GPUS) as taker:
                server.wait(lambda expected=rank + 1: _num_faults(home) == expected)
                print(file=taker.stdin, flush=True)
                assert taker.stdout.readline() == "0\n"
                faults.unlink()
                server.wait(lambda: "MiB of the device's memory are free" in server.text("/startupz"))
                _assert_answers(server)
                if rank == 0:
                    faults.write_text("1 cudaStreamBeginCapture 1 hang")
        assert run_cli("wait", "--graphs", server.url).returncode == 0
        _assert_answers(server)
        assert server.terminate(signal.SIGTERM) == 0


_CUDA: Final = "rank {rank}: [^;]*AcceleratorError: CUDA error: "
_HANGS: Final = "a capture of CUDA graphs after readiness does not end"
_DIES: Final = "Worker proc VllmWorker-{rank} died unexpectedly"
_NCCL: Final = (*_TP, "--disable-custom-all-reduce")
_CASES = [
    pytest.param(words, rank, fault, reason, id=f"{name} rank {rank} {kind}")
    for name, words in {"TP 2": _TP, "PP 2": _PP}.items()
    for rank in (0, 1)
    for kind, fault, reason in (
        ("without memory", f"{_END} 2", _CUDA + "out of memory"),
        ("with a CUDA error that stays", f"{_END} 700!", _CUDA + "an illegal memory access"),
        ("killed", f"{_BEGIN} kill", _DIES),
        ("that hangs", f"{_BEGIN} hang", _HANGS),
    )
] + [
    pytest.param(_NCCL, rank, f"{_BEGIN} 0\n{rank} ncclAllReduce 1 6", "rank {rank}: ", id=f"TP 2 rank {rank} of NCCL")
    for rank in (0, 1)
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "rank", "fault", "reason"),
    [*_CASES, pytest.param((), 0, f"{_END} 700!", _CUDA + "an illegal memory access", id="only rank")],
)
def test_a_rank_that_fails_ends_the_engine_and_the_next_start_captures_before_readiness(
    start, home, faults, words, rank, fault, reason
):
    faults.write_text(f"{rank} {fault}")
    with start(*words) as server:
        assert server.process.wait(_END_S) in (1, 3)  # the API server may become ready later than the engine
        assert _num_faults(home) > 0
        assert re.search(reason.format(rank=rank), server.log)
    faults.unlink()
    with start(*words) as server:
        _assert_answers(server.wait_ready())
        shown = server.get("/startupz")["cuda_graphs"]
        assert shown["captured"] == shown["total"] > 0
        assert _EARLY in server.log
        assert server.terminate(signal.SIGTERM) == 0
