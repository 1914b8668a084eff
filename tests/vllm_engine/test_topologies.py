"""Topologies of several processes and nodes serve the right text. All their processes end together."""

import signal

import psutil
import pytest

from tests.support.http_client import ask
from tests.support.waiting import is_gone, wait_until
from tests.vllm_engine.vllm_server import VllmServer, title_of

GONE_S = 120.0


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
        wait_until(lambda: all(is_gone(process.pid) for process in family), GONE_S)


@pytest.mark.versions
@pytest.mark.ci_vllm
def test_a_killed_worker_stops_the_server_as_in_vllm(start_vllm, two_ranks):
    with start_vllm("ours", "--tensor-parallel-size", "2", environment=two_ranks) as server:
        server.wait_ready()
        server.titled("Worker_TP1")[0].kill()
        server.process.wait(GONE_S)
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
