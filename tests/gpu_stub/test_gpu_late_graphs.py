"""vLLM serves before its CUDA graphs are captured, and has all of them in the end. No kernel runs.

With requests that never pause, a graph is captured each half second, so that tests can act in the middle.
"""

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.gpu_stub.gpu_server import EAGER, GpuServer
from tests.gpu_stub.sleeper import Sleeper
from tests.support.cli import run_cli
from tests.support.http_client import LoadClients, StreamReader

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
    ("words", "variables", "num_graphs"),
    [
        pytest.param(_mode("FULL_AND_PIECEWISE"), {}, 16, id="both modes"),
        pytest.param(_mode("PIECEWISE"), {}, 8, id="piecewise"),
        pytest.param(_mode("FULL_DECODE_ONLY"), {}, 8, id="full for decode"),
        pytest.param(_mode("FULL"), {}, 8, id="full"),
        pytest.param(_mode("FULL_AND_PIECEWISE"), _OLD, 16, id="both modes, old runner"),
    ],
)
def test_all_graphs_that_vllm_captures_are_captured_after_readiness(home, words, variables, num_graphs):
    usages = []
    shown = {"captured": num_graphs, "total": num_graphs, "state": "complete"}
    for when in ("before-ready", "after-ready"):
        with GpuServer("ours", *_WORDS, *words, "--cuda-graphs", when, folder=home, environment=variables) as server:
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
    words = (*_WORDS, *_mode("FULL_AND_PIECEWISE"))
    for launcher in ("ours", "warm"):
        with GpuServer(launcher, *words, folder=tmp_path) as server:
            assert server.wait_ready().generate()
            assert _wait_for_all(server) == 16
            server.wait_logged("all 16 CUDA graphs are captured")
            assert server.terminate(signal.SIGTERM) == 0
        assert _LATE in server.log


_TP, _PP, _DP = "--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size"


@pytest.mark.parametrize(
    ("words", "num_engines"), [((_TP, "3"), 1), ((_PP, "2"), 1), ((_DP, "2"), 2)], ids=["TP 3", "PP 2", "DP 2"]
)
def test_all_ranks_capture_all_graphs_under_load(tmp_path, words, num_engines):
    environment = {"STUB_GPUS": words[1]}
    few = _mode("FULL_AND_PIECEWISE")
    with GpuServer("ours", *_LATER, *few, *words, folder=tmp_path, environment=environment) as server:
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
    "words",
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
def test_where_late_graphs_are_not_proven_all_are_captured_before_readiness(home, words):
    words = (*_WORDS, *_mode("FULL_AND_PIECEWISE"), *words)
    with GpuServer("ours", *words, folder=home, environment={"STUB_GPUS": "3"}) as server:
        server.wait_ready()
        captured, total = _graphs(server)
        assert captured == total > 0
        assert _LATE not in server.log  # no request, because with drafts none ends on the stand-in


def test_an_eager_start_has_no_graphs(home):
    with GpuServer("ours", *EAGER, folder=home) as server:
        server.wait_ready()
        assert run_cli("wait", "--graphs", server.url).returncode == 0
        assert _graphs(server) == (-1, -1)
