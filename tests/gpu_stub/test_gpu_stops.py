"""After signals, killed processes or a hung GPU, a server ends with the right code and leaves nothing."""

import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.gpu_stub.gpu_server import EAGER, GpuServer
from tests.support.openai_client import StreamReader
from tests.support.processes import assert_gone
from tests.support.waiting import wait_until

_END_S = 30.0
_HUNG_S = 20.0


@pytest.fixture
def hanging(tmp_path: Path) -> Path:
    """The GPU hangs once this file exists."""
    return tmp_path / "hang"


@pytest.fixture
def server(home: Path, hanging: Path) -> Iterator[GpuServer]:
    """A server that is ready and has a watchdog."""
    words = (*EAGER, "--engine-watchdog-timeout", f"{_HUNG_S:g}")
    with GpuServer("ours", *words, folder=home, environment={"STUB_HANG": str(hanging)}) as started:
        yield started.wait_ready()


@pytest.fixture
def family(server: GpuServer) -> list[psutil.Process]:
    return server.family()


def test_sigterm_when_ready(server, family):
    assert server.generate()
    assert server.terminate(signal.SIGTERM) == 0
    assert_gone(family)


def test_a_killed_launcher_takes_all_with_it(server, family):
    server.process.kill()
    assert_gone(family)


def test_a_killed_engine_ends_the_server(server, family):
    stream = StreamReader(server.url, 1800)
    server.titled("EngineCore")[0].kill()
    assert server.process.wait(_END_S) == 1
    assert "error" in _last_event(stream)
    assert_gone(family)
    assert re.search(r"^Error: EngineCore \(pid \d+\) failed while it served\.", server.log, re.M)


def test_a_gpu_that_hangs_ends_the_server(server, family, hanging):
    stream = StreamReader(server.url, 1800)
    hanging.touch()
    assert server.process.wait(_HUNG_S + _END_S) == 1
    assert "The engine hangs" in _last_event(stream)["error"]["message"]
    assert_gone(family)
    assert "EngineHangError" in server.log


def test_streams_finish_in_a_drain(home):
    with GpuServer("ours", *EAGER, folder=home, environment={"STUB_LAUNCH_US": "50"}) as server:
        server.wait_ready()
        streams = [StreamReader(server.url, 200) for _ in range(3)]
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.health() == 503)
        for stream in streams:
            *_, last, end = stream.finish()
            assert last["choices"][0]["finish_reason"] == "length"
            assert end is None
        assert server.process.wait(_END_S) == 0


def test_a_killed_worker_ends_the_server(home):
    words = (*EAGER, "--pipeline-parallel-size", "2")
    with GpuServer("ours", *words, folder=home, environment={"STUB_GPUS": "2"}) as server:
        server.wait_ready()
        server.titled("Worker_PP1")[0].kill()
        assert server.process.wait(_END_S) == 1


def test_a_failing_gpu_ends_the_server(home, tmp_path):
    fail = tmp_path / "fail"
    with GpuServer("ours", *EAGER, folder=home, environment={"STUB_FAIL": str(fail)}) as server:
        assert server.wait_ready().generate()
        fail.touch()
        server.ask("/v1/completions", {"prompt": "a", "max_tokens": 4})
        assert server.process.wait(_END_S) == 1
    assert "illegal memory access" in server.log


def test_a_killed_engine_is_started_again(home):
    with GpuServer("ours", *EAGER, "--restart", "on-failure", folder=home) as server:
        server.wait_ready()
        (engine,) = server.titled("EngineCore")
        engine.kill()
        server.wait(lambda: [each for each in server.titled("EngineCore") if each != engine])
        assert server.wait_ready().generate()
        assert server.terminate(signal.SIGTERM) == 0


_PHASES = {
    "preflight": "",
    "configuration": "non-default args",
    "load": "Loading model from scratch",
    "KV cache": "KV cache size",
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.parametrize("phase", _PHASES)
def test_a_stopped_start_leaves_nothing(home, phase, number):
    with GpuServer("ours", *EAGER, folder=home) as server:
        if line := _PHASES[phase]:
            server.wait_logged(line)
        else:
            server.wait_status(503)
        family = server.family()
        server.process.send_signal(number)
        assert server.process.wait(_END_S) in (-number, 128 + number)
        assert_gone(family)


_LENGTH = 131072
_SILENT_S = 10.0
_LAUNCH_US = 1500
"""The time of a kernel launch, with which a step takes about half a second."""
_CHUNK = 2048
_NUM_CHUNKS = _LENGTH // _CHUNK
"""Also the number of requested tokens, because without kernels each chunk of the prefill yields a token."""
_LONG_WORDS = (
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
    """The engine answers the watchdog after each step, even if the whole prefill takes long on a slow GPU."""
    environment = {"STUB_LAUNCH_US": str(_LAUNCH_US)}
    with GpuServer("ours", *_LONG_WORDS, folder=home, environment=environment) as server:
        server.wait_ready()
        prompt = [1000 + number % 1000 for number in range(_LENGTH - _NUM_CHUNKS)]
        begin_s = time.monotonic()
        answer = server.post("/v1/completions", prompt=prompt, max_tokens=_NUM_CHUNKS, ignore_eos=True)
        assert time.monotonic() - begin_s > 2 * _SILENT_S
        assert answer["usage"]["prompt_tokens"] == len(prompt)
        assert server.health() == 200
        assert server.terminate(signal.SIGTERM) == 0
    assert "it was silent for" not in server.log


def _last_event(stream: StreamReader) -> dict:
    *_, last, end = stream.finish()
    assert end is None
    return last
