"""SIGTERM to vLLM: running requests finish or end with an error, new ones get a 503, and the process ends."""

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.e2e.stream_reader import StreamReader
from tests.http_answer import ask
from tests.startup.vllm.fake_start import FakeStart
from tests.waiting import wait_until

pytestmark = pytest.mark.thorough

_ENDLESS = 1_000_000


@pytest.fixture
def start(folder: Path, request: pytest.FixtureRequest) -> Iterator[FakeStart]:
    """A ready server with the time for running requests that the test asks for."""
    words = ("--shutdown-timeout", str(request.param)) if request.param is not None else ()
    with FakeStart(folder, "model", *words) as started:
        yield started.wait_until_ready()


def _url(start: FakeStart) -> str:
    return f"http://127.0.0.1:{start.port}"


def _stop(start: FakeStart) -> None:
    """Sends SIGTERM and waits until new requests are rejected."""
    start.record_tree()
    start.process.send_signal(signal.SIGTERM)
    wait_until(lambda: ask(f"{_url(start)}/health").status == 503)


def _begin_to_read(start: FakeStart, prompt: str) -> socket.socket:
    """A client of an endless stream that has read the first byte."""
    client = socket.create_connection(("127.0.0.1", start.port), timeout=60)
    body = json.dumps({"prompt": prompt, "max_tokens": _ENDLESS, "stream": True}).encode()
    client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    client.recv(1)
    return client


@pytest.mark.parametrize("start", [None], indirect=True)
def test_a_running_stream_finishes(start):
    stream = StreamReader(_url(start), 150)
    _stop(start)
    rejected = ask(f"{_url(start)}/v1/completions", {"prompt": "a"})
    assert (rejected.status, rejected.json["status"]) == (503, "draining")
    *tokens, end = stream.finish()
    assert (len(tokens), end) == (150, None)
    assert start.process.wait(60) == 0
    start.wait_until_tree_is_gone()
    assert "1 requests may run for 30 s more" in start.text


@pytest.mark.parametrize("start", [1], indirect=True)
def test_a_client_that_does_not_read_holds_nothing_up(start):
    with closing(_begin_to_read(start, "x" * 1_000_000)):  # more than the sockets hold
        _stop(start)
        assert start.process.wait(60) == 0
    start.wait_until_tree_is_gone()


@pytest.mark.parametrize("start", [600], indirect=True)
def test_a_second_signal_ends_what_runs(start):
    stream = StreamReader(_url(start), _ENDLESS)
    _stop(start)
    start.process.send_signal(signal.SIGTERM)
    *_, last, end = stream.finish()
    assert ("the server was stopped" in json.dumps(last), end) == (True, None)
    assert start.process.wait(60) == 0
    start.wait_until_tree_is_gone()


@pytest.mark.parametrize("start", [600], indirect=True)
def test_an_engine_that_dies_ends_the_drain(start):
    """Its requests fail, so that nothing is left to wait for."""
    engine = start.named("VLLM::EngineCor")
    with closing(_begin_to_read(start, "a")) as client:
        _stop(start)
        engine.kill()
        with suppress(ConnectionResetError):
            while client.recv(1 << 16):
                pass
    assert start.process.wait(60) == 0
    start.wait_until_tree_is_gone()
