"""With real vLLM, a dead engine is a 503 at once."""

import pytest

from tests.support.http_client import ask
from tests.support.waiting import wait_until
from tests.vllm_engine.vllm_server import VllmServer

_FAST_S = 1.5
"""A limit far below the five seconds for which the loop does not run."""


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
