"""Warm starts: the server is a child of the template, which has not initialized CUDA."""

import signal

import pytest

from tests.gpu_stub.gpu_server import EAGER, GpuServer

_KINDS = [
    pytest.param(EAGER, id="eager", marks=pytest.mark.ci_vllm),
    pytest.param(EAGER[1:], id="compiled"),
]


@pytest.mark.parametrize("words", _KINDS)
def test_a_start_after_the_first_is_warm(tmp_path, words):
    with GpuServer("ours", *words, folder=tmp_path) as server:
        text = server.wait_ready().generate()
    with GpuServer("warm", *words, folder=tmp_path) as server:
        assert server.wait_ready().generate() == text
        assert server.main_process() != server.root
        server.assert_only(["EngineCore"])
        assert server.terminate(signal.SIGTERM) == 0
    assert "initialised CUDA" not in server.log
