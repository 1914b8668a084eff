"""SIGTERM to vLLM under the launcher: running requests finish, and new ones get a 503."""

import signal
import time

import psutil
import pytest

from tests.e2e.stream_reader import StreamReader
from tests.http_answer import ask
from tests.waiting import wait_until

_NUM_STREAMS = 20
_NUM_TOKENS = 200
_TOPOLOGIES = {"one": (), "two API servers": ("--api-server-count", "2"), "two engines": ("--data-parallel-size", "2")}
_GONE_S = 60.0


@pytest.mark.parametrize("topology", _TOPOLOGIES)
@pytest.mark.parametrize("launcher", ["ours", "warm"])
def test_running_streams_finish_and_new_requests_get_503(start_vllm, launcher, topology):
    with start_vllm(launcher, "--max-num-seqs", "32", *_TOPOLOGIES[topology]) as server:
        server.wait_ready()
        streams = [StreamReader(server.url, _NUM_TOKENS) for _ in range(_NUM_STREAMS)]
        family = server.family()
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: ask(f"{server.url}/health").status == 503)
        rejected = ask(f"{server.url}/v1/completions", {"prompt": "a", "max_tokens": 1})
        assert rejected.status == 503
        assert {name.lower(): value for name, value in rejected.headers.items()}["retry-after"] == "1"
        assert rejected.json["status"] == "draining"
        for stream in streams:
            *_, last, end = stream.finish()
            assert last["choices"][0]["finish_reason"] == "length"
            assert end is None
        assert server.process.wait(_GONE_S) == 0
        psutil.wait_procs(family, _GONE_S)
        timeout_s = 30 if topology == "one" else 26  # several API servers are killed by their parent after 30 s
        assert f"may run for {timeout_s} s more" in server.log


@pytest.mark.parametrize("by", ["time-out", "second signal", "--shutdown-timeout 0"])
def test_what_is_left_ends_with_an_error_event(start_vllm, by):
    timeout_s = {"time-out": "1", "second signal": "600", "--shutdown-timeout 0": "0"}[by]
    with start_vllm("ours", "--shutdown-timeout", timeout_s) as server:
        server.wait_ready()
        streams = [StreamReader(server.url, 240) for _ in range(6)]
        server.process.send_signal(signal.SIGTERM)
        if by == "second signal":
            wait_until(lambda: ask(f"{server.url}/health").status == 503)
            server.process.send_signal(signal.SIGTERM)
        begin_s = time.monotonic()
        for stream in streams:
            *_, last, end = stream.finish()
            assert "server" in last["error"]["message"]
            assert end is None
        assert server.process.wait(_GONE_S) == 0
        assert time.monotonic() - begin_s < _GONE_S


@pytest.mark.versions
@pytest.mark.parametrize("engine", ["running", "dead"])
def test_the_drain_in_every_version(start_vllm, engine):
    """A dead engine fails its requests, so that nothing is left to wait for."""
    with start_vllm("ours", "--shutdown-timeout", "600") as server:
        server.wait_ready()
        streams = [StreamReader(server.url, 240) for _ in range(4)]
        family = server.family()
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: ask(f"{server.url}/health").status == 503)
        if engine == "dead":
            (core,) = server.titled("EngineCore")
            core.kill()
        ends = [stream.finish()[-2:] for stream in streams]
        if engine == "running":
            assert [(last["choices"][0]["finish_reason"], end) for last, end in ends] == [("length", None)] * 4
            assert server.process.wait(_GONE_S) == 0
        server.process.wait(_GONE_S)
        _, alive = psutil.wait_procs(family, _GONE_S)
        assert not alive
