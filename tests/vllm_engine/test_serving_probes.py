"""With real vLLM, the responder answers `/health` as vLLM does, also while vLLM's event loop is held."""

import time
from collections.abc import Iterator

import psutil
import pytest

from tests.support.http_client import ask
from tests.support.waiting import wait_until
from tests.vllm_engine.conftest import StartVllm
from tests.vllm_engine.vllm_server import VllmServer

_FAST_S = 1.5
"""A limit far below the five seconds for which the loop does not run."""


@pytest.fixture
def server(start_vllm: StartVllm) -> Iterator[VllmServer]:
    with start_vllm("ours") as server:
        server.wait_ready()
        wait_until(lambda: _responder(server).is_running())
        time.sleep(1)  # the first heartbeats have no answer yet
        yield server


def _responder(server: VllmServer) -> psutil.Process:
    words = server.main_process().cmdline()
    running = (p for p in server.main_process().children() if p.status() != psutil.STATUS_ZOMBIE)
    (responder,) = (p for p in running if p.cmdline() == words)
    return responder


def _probe(server: VllmServer) -> int:
    return ask(f"{server.url}/health", timeout_s=_FAST_S).status


@pytest.mark.ci_vllm
def test_a_dead_engine_is_503_at_once(start_vllm):
    with start_vllm("ours", environment={"VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "1"}) as server:
        server.wait_ready()
        (engine,) = server.titled("EngineCore")
        engine.kill()
        wait_until(lambda: _probe(server) == 503)
        assert server.process.poll() is None
