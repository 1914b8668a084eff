"""Topologies of several processes and nodes serve the right text. All their processes end together."""

import signal

import psutil
import pytest

from tests.support.ports import free_port
from tests.support.waiting import is_gone, wait_until
from tests.vllm_engine.ray_node import RAY, RayNode
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


def test_data_parallel_engines_with_an_api_server_each(start_vllm, two_ranks, expected_text):
    with start_vllm("ours", "--data-parallel-size", "2", environment=two_ranks) as server:
        server.wait_ready()
        assert {server.generate() for _ in range(4)} == {expected_text}
        assert [title_of(engine) for engine in server.titled("EngineCore")] == ["EngineCore_DP0", "EngineCore_DP1"]
        assert [title_of(api) for api in server.titled("APIServer")] == ["APIServer_0", "APIServer_1"]
        assert server.terminate(signal.SIGTERM) == 0


def test_two_api_servers_share_port_and_engine_and_outlive_the_forkserver(start_vllm, expected_text):
    with start_vllm("ours", "--api-server-count", "2") as server:
        server.wait_ready()
        apis = server.titled("APIServer")
        assert [title_of(api) for api in apis] == ["APIServer_0", "APIServer_1"]
        assert all(_is_forked(process, server) for process in (*apis, *server.titled("EngineCore")))
        assert {server.generate() for _ in range(8)} == {expected_text}
        [forkserver] = _helpers(server, "forkserver")
        forkserver.kill()
        wait_until(lambda: is_gone(forkserver.pid), GONE_S)
        assert {server.generate() for _ in range(8)} == {expected_text}
        assert server.terminate(signal.SIGTERM) == 0


def test_a_headless_node_and_its_head(start_vllm, two_ranks, expected_text):
    nodes = ("--tensor-parallel-size", "2", "--nnodes", "2", "--master-addr", "127.0.0.1")
    first, _, second = two_ranks["VLLM_CPU_OMP_THREADS_BIND"].partition("|")
    common = (*nodes, "--master-port", str(free_port()))
    with (
        start_vllm("ours", *common, "--node-rank", "1", "--headless", environment=_bound(second)) as worker,
        start_vllm("ours", *common, "--node-rank", "0", environment=_bound(first)) as head,
    ):
        assert head.wait_ready().generate() == expected_text
        assert [title_of(process) for process in head.titled("Worker")] == ["Worker_TP0"]
        assert [title_of(process) for process in worker.titled("Worker")] == ["Worker_TP1"]
        assert worker.status("/health") == 0, "a headless node has no port"


def test_a_headless_node_with_an_engine_of_its_own(start_vllm, two_ranks, expected_text):
    port = str(free_port())
    ranks = ("--data-parallel-size", "2", "--data-parallel-size-local", "1")
    common = (*ranks, "--data-parallel-address", "127.0.0.1", "--data-parallel-rpc-port", port)
    first, _, second = two_ranks["VLLM_CPU_OMP_THREADS_BIND"].partition("|")
    with (
        start_vllm(
            "ours", *common, "--headless", "--data-parallel-start-rank", "1", environment=_bound(second)
        ) as other,
        start_vllm("ours", *common, "--api-server-count", "1", environment=_bound(first)) as head,
    ):
        head.wait_ready()
        assert {head.generate() for _ in range(4)} == {expected_text}
        assert [title_of(process) for process in head.titled("EngineCore")] == ["EngineCore_DP0"]
        assert [title_of(process) for process in other.titled("EngineCore")] == ["EngineCore_DP1"]


def _bound(cpus: str) -> dict[str, str]:
    return {"VLLM_CPU_OMP_THREADS_BIND": cpus}


@pytest.mark.skipif(not RAY.exists(), reason="Ray is not installed in .peers/ray")
def test_one_node_of_ray(start_vllm, tmp_path, expected_text):
    backend = ("--distributed-executor-backend", "ray")
    with RayNode(tmp_path / "ray") as node, start_vllm("ours", *backend, environment=node.environment) as server:
        assert server.wait_ready().generate() == expected_text
        assert server.titled("Worker") == []
        [engine] = server.titled("EngineCore")
        assert _is_forked(engine, server)
        assert server.terminate(signal.SIGTERM) == 0
