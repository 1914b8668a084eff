"""A long prefill on a slow GPU is no hang: each step answers the watchdog, however long all of them take."""

import json
import signal
import time

from tests.gpu_stub.gpu_server import GpuServer

_LENGTH = 131072
_SILENT_S = 10.0
_LAUNCH_US = 1500
"""A step takes about half a second on this device."""
_CHUNK = 2048
_NUM_CHUNKS = _LENGTH // _CHUNK
"""Each chunk yields a token, because no kernel runs: as many are wanted, or the request ends too early."""
_WORDS = (
    "--enforce-eager",
    "--max-model-len",
    str(_LENGTH),
    "--hf-overrides",
    json.dumps({"max_position_embeddings": _LENGTH}),
    "--max-num-batched-tokens",
    str(_CHUNK),
    "--engine-watchdog-timeout",
    f"{_SILENT_S:g}",
)


def test_a_prefill_longer_than_the_watchdogs_timeout_goes_on(home):
    environment = {"STUB_LAUNCH_US": str(_LAUNCH_US)}
    with GpuServer("ours", *_WORDS, folder=home, environment=environment) as server:
        server.wait_ready()
        prompt = [1000 + number % 1000 for number in range(_LENGTH - _NUM_CHUNKS)]
        begin_s = time.monotonic()
        answer = server.post("/v1/completions", prompt=prompt, max_tokens=_NUM_CHUNKS, ignore_eos=True)
        assert time.monotonic() - begin_s > 2 * _SILENT_S
        assert answer["usage"]["prompt_tokens"] == len(prompt)
        assert server.health() == 200
        assert server.terminate(signal.SIGTERM) == 0
    assert "silent" not in server.log
