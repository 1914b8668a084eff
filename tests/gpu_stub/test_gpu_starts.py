"""Starts in one home: each is ready, and only the process that computes has initialized CUDA."""

import signal

import pytest

from tests.gpu_stub.gpu_server import EAGER, GpuServer


@pytest.fixture(scope="module")
def texts():
    """What the starts have answered."""
    return []


@pytest.mark.ci_vllm
@pytest.mark.parametrize("turn", ["first", "second"])
def test_the_first_and_the_second_start(home, texts, turn):
    _serve(home, texts)


def test_the_third_start(home, texts):
    _serve(home, texts)


def test_plain_answers_the_same(home, texts):
    with GpuServer("plain", *EAGER, folder=home) as server:
        texts.append(server.wait_ready().generate())
        server.assert_only(["EngineCore"])
    assert set(texts) == {texts[0]}


def _serve(home, texts):
    with GpuServer("ours", *EAGER, folder=home) as server:
        texts.append(server.wait_ready().generate())
        [engine] = server.assert_only(["EngineCore"])
        assert server.is_forked(engine)
        assert server.terminate(signal.SIGTERM) == 0
    assert "ERROR" not in server.log
    assert set(texts) == {texts[0]}
