"""After a signal or a kill, all processes of real vLLM end. In a drain, requests get a 503."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tests.support.folders import short_folder
from tests.support.http_client import StreamReader, ask
from tests.support.hub import HubServer
from tests.support.waiting import GONE_S, assert_gone, is_gone, shared_memory, wait_until
from tests.vllm_engine.conftest import PEER_MODEL
from tests.vllm_engine.vllm_server import VllmServer, title_of

_READY_S = 600.0
_BYTES_PER_S = 10e6


class _Phase(NamedTuple):
    """A phase of the start, and the log line that shows it."""

    line: str
    arguments: tuple[str, ...] = ("--enforce-eager",)
    since_s: float = 0.0
    """How many seconds the phase has run when the signal comes."""


_PHASES = {
    "imports": _Phase(""),
    "download": _Phase("downloading"),
    "configuration": _Phase("non-default args"),
    "engine": _Phase("Initializing a V1 LLM engine"),
    "workers": _Phase("world_size=", ("--enforce-eager", "--tensor-parallel-size", "2")),
    "load": _Phase("Starting to load model"),
    "compilation": _Phase("Warming up model for the compilation", (), 4.0),
    "warm-up": _Phase("Warming up model for the compilation", ()),
    "KV cache": _Phase("KV cache size"),
    "HTTP server": _Phase("Supported tasks"),
}


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer().serving() as server:
        server.link.bytes_per_s = _BYTES_PER_S
        server.add("org/model", PEER_MODEL)
        yield server


@pytest.mark.versions
@pytest.mark.alone
@pytest.mark.parametrize(
    ("number", "code", "to"),
    [(signal.SIGTERM, -signal.SIGTERM, "process"), (signal.SIGINT, 130, "group")],
    ids=["supervisor", "terminal"],
)
@pytest.mark.parametrize("phase", _PHASES)
def test_a_stopped_start_leaves_nothing(start_vllm, small_model, two_ranks, hub, phase, number, code, to):
    line, arguments, since_s = _PHASES[phase]
    with short_folder() as folder:
        temp = folder / "temp"
        temp.mkdir()
        environment = {**two_ranks, "TMPDIR": str(temp)}
        model = small_model
        if phase == "download":
            model = Path("org/model")
            environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder)}
        if phase == "compilation":
            environment["VLLM_CACHE_ROOT"] = str(folder / "cache")
        with start_vllm("ours", "--max-model-len", "256", *arguments, model=model, environment=environment) as server:
            _wait_logged(server, line) if line else server.wait_status(503)
            time.sleep(since_s)
            family = server.family()
            memory, log = shared_memory(family), server.log
            (os.killpg if to == "group" else os.kill)(server.process.pid, number)
            assert server.process.wait(GONE_S) == code
            assert_gone(family)
            told = server.log.removeprefix(log)
        name = signal.Signals(number).name
        assert told.count(f"stopped by {name} during the start, in phase ") == 1, told
        assert not [argument for argument in ("Traceback", "Cause:", "Error: ", "leaked") if argument in told], told
        assert [path.name for path in temp.iterdir() if not path.name.startswith("torchinductor_")] == []
        assert [path for path in memory if path.exists()] == []


def _wait_logged(server: VllmServer, line: str) -> None:
    """Waits for a line. Polls often, because readiness comes some tenths of a second after the last phase."""
    wait_until(lambda: line in server.log or server.process.poll() is not None, _READY_S)


_NUM_TOKENS = 500
_TOPOLOGIES = {"one": (), "two API servers": ("--api-server-count", "2"), "two engines": ("--data-parallel-size", "2")}
_DRAINED_S = 60.0


@pytest.mark.parametrize(
    ("launcher", "topology"),
    [
        pytest.param("ours", "one", marks=[pytest.mark.versions, pytest.mark.ci_vllm]),
        ("ours", "two API servers"),
        ("ours", "two engines"),
        ("warm", "one"),
    ],
)
def test_running_streams_finish_and_new_requests_get_503(start_vllm, launcher, topology):
    arguments = ("--max-num-seqs", "32", "--max-model-len", "512")
    with start_vllm(launcher, *arguments, *_TOPOLOGIES[topology]) as server:
        server.wait_ready()
        engines = server.titled("EngineCore")
        streams = [StreamReader(server.url, _NUM_TOKENS) for _ in range(20)]
        for engine in engines:
            engine.suspend()  # so that streams still run when the signal comes
        family = server.family()
        for process in server.roots():  # as a service manager does; the front process forwards it to the server
            process.send_signal(signal.SIGTERM)
        wait_until(lambda: ask(f"{server.url}/health").status == 503)
        rejected = ask(f"{server.url}/v1/completions", {"prompt": "a", "max_tokens": 1})
        assert rejected.status == 503
        assert rejected.headers["retry-after"] == "1"
        assert rejected.json["status"] == "draining"
        for engine in engines:
            engine.resume()
        for stream in streams:
            *_, last, end = stream.finish()
            assert last["choices"][0]["finish_reason"] == "length"
            assert end is None
        assert server.process.wait(_DRAINED_S) == 0
        psutil.wait_procs(family, _DRAINED_S)
        timeout_s = 25 if topology == "one" else 21  # several API servers are killed by their parent after 25 s
        assert f"may run for {timeout_s} s more" in server.log


def test_a_stop_logs_no_error(start_vllm):
    """Plain vLLM logs a traceback in half of the stops, by a race of threads. So there are several stops."""
    for _ in range(8):
        with start_vllm("ours") as server:
            server.wait_ready()
            server.generate()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(_DRAINED_S) == 0
        assert [line for line in server.log.splitlines() if "ERROR" in line or "Traceback" in line] == []


_ENDED_S = 120.0


def _helpers(server: VllmServer, name: str) -> list[psutil.Process]:
    return [process for process in server.family() if f"{name} import main" in title_of(process)]


def _is_forked(process: psutil.Process, server: VllmServer) -> bool:
    [forkserver] = _helpers(server, "forkserver")
    return process.ppid() == forkserver.pid


@pytest.mark.versions
def test_tensor_parallel_ranks_end_with_a_killed_launcher(start_vllm, two_ranks, expected_text):
    with start_vllm("ours", "--tensor-parallel-size", "2", environment=two_ranks) as server:
        assert server.wait_ready().generate() == expected_text
        workers = server.titled("Worker")
        assert [title_of(worker) for worker in workers] == ["Worker_TP0", "Worker_TP1"]
        assert all(_is_forked(process, server) for process in (*workers, *server.titled("EngineCore")))
        family = server.family()
        assert _helpers(server, "resource_tracker")
        server.process.kill()
        server.process.wait()
        wait_until(lambda: all(is_gone(process.pid) for process in family), _ENDED_S)


@pytest.mark.versions
@pytest.mark.ci_vllm
def test_a_killed_worker_stops_the_server_as_in_vllm(start_vllm, two_ranks):
    with start_vllm("ours", "--tensor-parallel-size", "2", environment=two_ranks) as server:
        server.wait_ready()
        server.titled("Worker_TP1")[0].kill()
        server.process.wait(_ENDED_S)
        assert "Worker proc VllmWorker-1 died unexpectedly (exit code: -9)" in server.log


@pytest.mark.ci_vllm
def test_a_dead_engine_is_503_at_once(start_vllm):
    """A probe waits for 1.5 s, far below the five seconds for which vLLM's loop does not run."""
    with start_vllm("ours", environment={"VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "1"}) as server:
        server.wait_ready()
        (engine,) = server.titled("EngineCore")
        engine.kill()
        wait_until(lambda: ask(f"{server.url}/health", timeout_s=1.5).status == 503)
        assert server.process.poll() is None


def test_two_api_servers_share_port_and_engine(start_vllm, expected_text):
    with start_vllm("ours", "--api-server-count", "2") as server:
        server.wait_ready()
        apis = server.titled("APIServer")
        assert [title_of(api) for api in apis] == ["APIServer_0", "APIServer_1"]
        assert all(_is_forked(process, server) for process in (*apis, *server.titled("EngineCore")))
        assert {server.generate() for _ in range(8)} == {expected_text}
        assert server.terminate(signal.SIGTERM) == 0
