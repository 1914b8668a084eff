"""vLLM serves with each start method, and the configured method is used."""

import pytest

from tests.vllm_engine.vllm_server import title_of


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_each_start_method_serves(start_vllm, expected_text, method):
    with start_vllm("ours", environment={"VLLM_WORKER_MULTIPROC_METHOD": method}) as server:
        assert server.wait_ready().generate() == expected_text
        has_forkserver = any("forkserver import main" in title_of(process) for process in server.family())
        assert has_forkserver == (method == "forkserver")
        [engine] = server.titled("EngineCore")
        assert (engine.ppid() == server.process.pid) == (method != "forkserver")
