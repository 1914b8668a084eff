"""The GPU's memory: the KV cache of a compiled start and of the next one, sleep mode."""

import re
import signal

import pytest

from tests.gpu_stub.gpu_server import EAGER, GpuServer

_AWAKE_BYTES = 60 << 30
_ASLEEP_BYTES = 2 << 30
_KV_CACHE = re.compile(r"GPU KV cache size: ([\d,]+) tokens")


def test_a_compiled_start_and_the_next_one_have_the_same_kv_cache(home):
    sizes = []
    for turn in range(2):
        with GpuServer("ours", "--max-model-len", "2048", folder=home) as server:
            assert server.wait_ready().generate()
            server.assert_only(["EngineCore"])
            assert server.terminate(signal.SIGTERM) == 0
        sizes += _KV_CACHE.findall(server.log)
        assert ("Directly load AOT compilation" in server.log) == (turn == 1)
    assert sizes == [sizes[0]] * 2


@pytest.mark.parametrize("launcher", ["plain", "ours"])
def test_a_model_sleeps_and_wakes_up(home, launcher):
    environment = {"VLLM_SERVER_DEV_MODE": "1"}
    with GpuServer(launcher, *EAGER, "--enable-sleep-mode", folder=home, environment=environment) as server:
        text = server.wait_ready().generate()
        assert server.used_bytes() > _AWAKE_BYTES
        for level in (1, 2):
            assert server.ask(f"/sleep?level={level}", {}).status == 200
            assert server.used_bytes() < _ASLEEP_BYTES
            assert server.ask("/wake_up", {}).status == 200
            assert server.used_bytes() > _AWAKE_BYTES
        assert server.generate() == text
