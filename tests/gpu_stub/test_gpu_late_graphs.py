"""vLLM serves before its CUDA graphs are captured, and has all in the end, or a rank fails. No kernel runs.

With requests that never pause, a graph is captured each half second, so that tests can act in the middle.
"""

import json
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.gpu_stub.gpu_router import beside, take_memory
from tests.gpu_stub.gpu_server import EAGER, PYTHON, GpuServer, gpu_variables
from tests.gpu_stub.recipe_models import save_llama
from tests.gpu_stub.sleeper import Sleeper
from tests.support.cli import run_cli
from tests.support.http_client import LoadClients, StreamReader
from tests.support.standby_process import StandbyProcess
from tests.support.waiting import wait_until

_WORDS = EAGER[1:]
_LATER = (*_WORDS, "--cuda-graphs", "after-ready")
_SIZES = (1, 2, 4, 8, 16, 32, 48, 64)
_OLD = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
_VALUE = r"^vllm_cli:cuda_graphs_{} ([\d.]+)$"
_LATE = "[--cuda-graphs before-ready]"
"""The flag in the log line of differences, if graphs are captured late."""


def _mode(name: str) -> tuple[str, ...]:
    return ("--compilation-config", json.dumps({"cudagraph_capture_sizes": _SIZES, "cudagraph_mode": name}))


def _graphs(server: GpuServer) -> tuple[int, int]:
    """The captured graphs and all graphs, from the server's metrics. -1 if the metrics lack them."""
    metrics = server.text("/metrics")
    found = [re.search(_VALUE.format(name), metrics, re.M) for name in ("captured", "total")]
    captured, total = (int(float(match[1])) if match else -1 for match in found)
    return captured, total


def _wait_for_all(server: GpuServer) -> int:
    """Waits as a user does. Returns the number of graphs."""
    assert run_cli("wait", "--graphs", server.url).returncode == 0
    captured, total = _graphs(server)
    assert captured == total > 0
    return total


@contextmanager
def _load(server: GpuServer) -> Iterator[LoadClients]:
    """Requests that never pause during the block. Afterwards, none of them is lost."""
    with LoadClients(server.port, num_clients=8) as clients:
        yield clients
    assert set(clients.endings) == {"answered"}, (clients.endings, clients.losses)


@pytest.mark.parametrize(
    ("arguments", "variables", "num_graphs"),
    [
        pytest.param(_mode("FULL_AND_PIECEWISE"), {}, 16, id="both modes"),
        pytest.param(_mode("PIECEWISE"), {}, 8, id="piecewise"),
        pytest.param(_mode("FULL_DECODE_ONLY"), {}, 8, id="full for decode"),
        pytest.param(_mode("FULL"), {}, 8, id="full"),
        pytest.param(_mode("FULL_AND_PIECEWISE"), _OLD, 16, id="both modes, old runner"),
    ],
)
def test_all_graphs_that_vllm_captures_are_captured_after_readiness(home, arguments, variables, num_graphs):
    usages = []
    shown = {"captured": num_graphs, "total": num_graphs, "state": "complete"}
    for when in ("before-ready", "after-ready"):
        with GpuServer(
            "ours", *_WORDS, *arguments, "--cuda-graphs", when, folder=home, environment=variables
        ) as server:
            usages.append(server.wait_ready().usage())
            assert _wait_for_all(server) == num_graphs
            server.wait(lambda: server.get("/startupz")["cuda_graphs"] == shown)
            usages.append(server.usage())
            assert (_LATE in server.log) == (when == "after-ready")
            if when == "after-ready":
                server.wait_logged(f"all {num_graphs} CUDA graphs are captured")
            assert server.terminate(signal.SIGTERM) == 0
        assert "ERROR" not in server.log
    assert usages == [usages[0]] * 4


def test_a_warm_start_captures_each_graph_once(tmp_path):
    arguments = (*_WORDS, *_mode("FULL_AND_PIECEWISE"))
    for launcher in ("ours", "warm"):
        with GpuServer(launcher, *arguments, folder=tmp_path) as server:
            assert server.wait_ready().generate()
            assert _wait_for_all(server) == 16
            server.wait_logged("all 16 CUDA graphs are captured")
            assert server.terminate(signal.SIGTERM) == 0
        assert _LATE in server.log


_TP, _PP, _DP = "--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size"


@pytest.mark.parametrize(
    ("arguments", "num_engines"), [((_TP, "3"), 1), ((_PP, "2"), 1), ((_DP, "2"), 2)], ids=["TP 3", "PP 2", "DP 2"]
)
def test_all_ranks_capture_all_graphs_under_load(tmp_path, arguments, num_engines):
    environment = {"STUB_GPUS": arguments[1]}
    few = _mode("FULL_AND_PIECEWISE")
    with GpuServer("ours", *_LATER, *few, *arguments, folder=tmp_path, environment=environment) as server:
        server.wait_ready()
        with _load(server):
            assert _wait_for_all(server) == 16 * num_engines
        assert _LATE in server.log
        assert server.terminate(signal.SIGTERM) == 0


def test_a_drain_ends_the_capture_and_finishes_the_requests(home):
    with GpuServer("ours", *_WORDS, folder=home) as server:
        server.wait_ready()
        with LoadClients(server.port, num_clients=8) as clients:
            server.wait(lambda: clients.endings["answered"] > 20 and _graphs(server)[0] > 2)
            assert _graphs(server)[0] < _graphs(server)[1]
            stream = StreamReader(server.url, 400)
            server.process.send_signal(signal.SIGTERM)
            *_, last, end = stream.finish()
            assert last["choices"][0]["finish_reason"] == "length"
            assert end is None
            assert server.process.wait(60) == 0
    assert set(clients.endings) <= {"answered", "rejected", "not accepted"}, clients.losses
    assert "CUDA graphs are captured," not in server.log
    assert list(home.rglob("graph-memory/*.json")), "the next start does not measure the graphs"
    failures = [path.read_text() for path in home.rglob("late-captures/*.json")]
    assert not any("engine ended" in text for text in failures), "it captures after readiness, too"


def test_a_model_that_sleeps_in_the_middle_captures_the_rest_when_it_is_awake(tmp_path, sockets):
    with Sleeper(*_LATER, folder=tmp_path, socket_folder=sockets) as server:
        usage = server.wait_ready().usage()
        server.sleep(2)
        server.wait(lambda: _graphs(server)[1] > 0)
        asleep = _graphs(server)
        assert asleep[0] < asleep[1]
        assert server.get("/is_sleeping")["is_sleeping"]  # a call after which the loop decides again
        assert _graphs(server) == asleep
        server.wake()
        server.wait(lambda: _graphs(server) == (asleep[1], asleep[1]))
        assert server.usage() == usage


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("--cuda-graphs", "before-ready"), id="flag"),
        pytest.param((_TP, "3"), id="several ranks"),
        pytest.param(("--enable-sleep-mode",), id="sleep mode"),
        pytest.param(("--dtype", "float32"), id="float32"),
        pytest.param(("--kv-cache-memory-bytes", "2G"), id="size of the KV cache"),
        pytest.param(("--enable-lora",), id="LoRA"),
        pytest.param(
            ("--speculative-config", '{"method": "ngram", "num_speculative_tokens": 2}'), id="speculative decoding"
        ),
    ],
)
def test_where_late_graphs_are_not_proven_all_are_captured_before_readiness(home, arguments):
    arguments = (*_WORDS, *_mode("FULL_AND_PIECEWISE"), *arguments)
    with GpuServer("ours", *arguments, folder=home, environment={"STUB_GPUS": "3"}) as server:
        server.wait_ready()
        captured, total = _graphs(server)
        assert captured == total > 0
        assert _LATE not in server.log  # no request, because with drafts none ends on the stand-in


def test_an_eager_start_has_no_graphs(home):
    with GpuServer("ours", *EAGER, folder=home) as server:
        server.wait_ready()
        assert run_cli("wait", "--graphs", server.url).returncode == 0
        assert _graphs(server) == (-1, -1)


_TP2, _PP2 = ("--tensor-parallel-size", "2"), ("--pipeline-parallel-size", "2")
_DECODE: Final = json.dumps({"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"})
_FAILING: Final = ("--max-model-len", "2048", "--cuda-graphs", "after-ready", "--compilation-config", _DECODE)
_BEGIN, _END = "cudaStreamBeginCapture 20", "cudaStreamEndCapture 20"
"""A rank's 20th capture comes after readiness: few of the 51 graphs are captured before."""
_END_S: Final = 240.0
"""Less than the watchdog's 300 s, so that another part of the product has ended the engine."""
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
    for folder in ("graph-memory", "late-captures"):
        shutil.rmtree(home / "cache" / "vllm_cli" / folder, ignore_errors=True)
    yield lambda *arguments: GpuServer("ours", *_FAILING, *arguments, folder=home, model=home, environment=environment)
    faults.unlink(missing_ok=True)
    wait_until(lambda: not any(process.children() for process in template.templates()))


def _num_faults(home: Path) -> int:
    """How many faults have begun since the latest start."""
    return (home / "cuda.log").read_text().count("(fault)")


def _assert_answers(server: GpuServer) -> None:
    assert server.usage()["completion_tokens"] == server.MAX_TOKENS


@pytest.mark.parametrize("group", [_TP2, _PP2], ids=["TP 2", "PP 2"])
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
_NCCL: Final = (*_TP2, "--disable-custom-all-reduce")
_CASES = [
    pytest.param(arguments, rank, fault, reason, id=f"{name} rank {rank} {kind}")
    for name, arguments in {"TP 2": _TP2, "PP 2": _PP2}.items()
    for rank in (0, 1)
    for kind, fault, reason in (
        ("without memory", f"{_END} 2", _CUDA + "out of memory"),
        ("with a CUDA error that stays", f"{_END} 700!", _CUDA + "an illegal memory access"),
        ("killed", f"{_BEGIN} kill", "Worker proc VllmWorker-{rank} died unexpectedly"),
        ("that hangs", f"{_BEGIN} hang", "a capture of CUDA graphs after readiness does not end"),
    )
] + [
    pytest.param(_NCCL, rank, f"{_BEGIN} 0\n{rank} ncclAllReduce 1 6", "rank {rank}: ", id=f"TP 2 rank {rank} of NCCL")
    for rank in (0, 1)
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "rank", "fault", "reason"),
    [*_CASES, pytest.param((), 0, f"{_END} 700!", _CUDA + "an illegal memory access", id="only rank")],
)
def test_a_rank_that_fails_ends_the_engine_and_the_next_start_captures_before_readiness(
    start, home, faults, arguments, rank, fault, reason
):
    faults.write_text(f"{rank} {fault}")
    with start(*arguments) as server:
        assert server.process.wait(_END_S) in (1, 3)  # the API server may become ready later than the engine
        assert _num_faults(home) > 0
        assert re.search(reason.format(rank=rank), server.log)
    faults.unlink()
    with start(*arguments) as server:
        _assert_answers(server.wait_ready())
        shown = server.get("/startupz")["cuda_graphs"]
        assert shown["captured"] == shown["total"] > 0
        assert "CUDA graphs are captured before vLLM is ready: in an earlier start, " in server.log
        assert server.terminate(signal.SIGTERM) == 0
