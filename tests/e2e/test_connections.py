"""Misbehaving clients of the embedded server. `tests/contracts` has the limits of all ports."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server_process import ServerProcess
from tests.support.http_client import RawClient, request_bytes
from tests.support.waiting import wait_until

GET = b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n"
HEAD = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
SHORT = {"prompt": "a", "max_tokens": 1}
LONG = {"prompt": "a", "max_tokens": 3000, "ignore_eos": True, "stream": True}
LOUD = LONG | {"logprobs": 20, "n": 8, "temperature": 1.0}
"""A request for about 20 MB of events."""


@pytest.fixture(scope="module")
def server(tiny_llama: Path) -> Iterator[ServerProcess]:
    """A server with the default time-outs."""
    limits = ("--max-num-queued-reqs", "16")
    with ServerProcess([str(tiny_llama), "--served-model-name", "tiny", *limits]) as running:
        yield running


@pytest.fixture(scope="module")
def impatient(tiny_llama: Path) -> Iterator[ServerProcess]:
    """A server with time-outs of 2 s, which a well-behaved client may exceed on a busy machine."""
    limits = ("--http-header-timeout", "2", "--http-body-timeout", "2", "--http-send-timeout", "2")
    with ServerProcess([str(tiny_llama), "--served-model-name", "tiny", *limits]) as running:
        yield running


@pytest.fixture(autouse=True)
def check_server_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test no request runs, and the next request is answered."""
    yield
    for name in {"server", "impatient"} & set(request.fixturenames):
        server: ServerProcess = request.getfixturevalue(name)
        wait_until(lambda server=server: server.metric("vllm:num_requests_running") == 0)  # type: ignore[misc]
        with RawClient(server.port) as client:
            assert client.post("/v1/completions", SHORT).read().status == 200


@pytest.mark.parametrize(
    ("sent", "status", "text"),
    [
        (GET[:-2], 408, "2 s (--http-header-timeout)"),
        (
            f"{HEAD}content-length: 20000000\r\n\r\n".encode() + b" " * 10_000_000,
            408,
            "2 s (--http-body-timeout)",
        ),
        (b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{", 404, "Not Found"),
    ],
    ids=["headers", "burst", "rejected"],
)
def test_time_outs_are_those_of_the_flags(impatient, sent, status, text):
    """A fast first part of a body does not extend the time-out for the rest."""
    with RawClient(impatient.port) as client:
        answer = client.send(sent).read()
        assert answer.status == status
        assert text in answer.error["message"]
        assert client.is_closed()


@pytest.mark.parametrize("trailer", [b"x: " + b"a" * (1 << 20), b"x: 1\r\n" * 300], ids=["long", "many"])
def test_endless_trailers_are_rejected(server, trailer):
    with RawClient(server.port) as client:
        client.send(f"{HEAD}transfer-encoding: chunked\r\n\r\n1\r\n{{\r\n0\r\n".encode() + trailer)
        assert client.read().status == 431


def test_chunks_with_kilobytes_of_framing_are_rejected(server):
    with RawClient(server.port) as client:
        client.send(f"{HEAD}transfer-encoding: chunked\r\n\r\n".encode())
        for _ in range(200):
            client.send(b"1;" + b"x" * 5000 + b"\r\n{\r\n")
        answer = client.read()
        assert answer.status == 431
        assert "The framing of the body's chunks" in answer.error["message"]
        assert "(--h11-max-incomplete-event-size)" in answer.error["message"]


def test_trailers_are_not_treated_as_headers(server):
    """Proxies filter headers but not trailers, so a trailer must not act as a header."""
    head = f"{HEAD}transfer-encoding: chunked\r\n\r\n".encode()
    body = b'{"prompt": "a", "max_tokens": 1}'
    trailers = b"x-request-id: theirs\r\ncontent-encoding: gzip\r\n"
    with RawClient(server.port) as client:
        answer = client.send(head + b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(body), body, trailers)).read()
    assert answer.status == 200
    assert "theirs" not in json.loads(answer.body)["id"]


def test_a_compressed_body_is_rejected(server):
    with RawClient(server.port) as client:
        answer = client.post("/v1/completions", SHORT, content_encoding="gzip").read()
        assert (answer.status, answer.headers["accept-encoding"]) == (415, "identity")
        assert "Content-Encoding 'gzip'" in answer.error["message"]


def test_pipelined_requests_are_answered_in_order(server):
    bodies = [{"prompt": "a", "max_tokens": number} for number in (3, 1, 2)]
    with RawClient(server.port) as client:
        client.send(b"".join(request_bytes("/v1/completions", str(body).replace("'", '"').encode()) for body in bodies))
        client.send(GET)
        counts = [client.read().body.count(b'"completion_tokens":%d' % number) for number in (3, 1, 2)]
        assert counts == [1, 1, 1]
        assert client.read().status == 200


def test_garbage_after_a_request_does_not_change_its_response(server):
    with RawClient(server.port) as client:
        client.send(
            request_bytes("/v1/completions", b'{"prompt": "a", "max_tokens": 50, "stream": true}') + b"garbage\r\n\r\n"
        )
        answer = client.read_to_end()
        assert answer.count(b"HTTP/1.1") == 1
        assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_too_many_pipelined_requests_end_the_connection(server):
    with RawClient(server.port) as client:
        client.send(request_bytes("/v1/completions", b'{"prompt": "a"}') + GET * 1000)
        num_answers = client.read_to_end().count(b"HTTP/1.1 200")
        assert 1 <= num_answers < 100


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_frees_all_its_pipelined_requests(server, stream):
    aborted, body = _num_aborted(server), LONG | {"stream": stream}
    with RawClient(server.port) as client:
        client.post("/v1/completions", body).post("/v1/completions", body)
        wait_until(lambda: server.metric("vllm:num_requests_running") == 1)
    wait_until(lambda: _num_aborted(server) == aborted + 1)


@pytest.mark.parametrize("protocol", ["websocket", "WebSocket"])
def test_websockets_are_rejected(server, protocol):
    with RawClient(server.port) as client:
        client.send(
            f"GET /v1/realtime HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: {protocol}\r\n\r\n".encode()
        )
        answer = client.read()
        assert answer.status == 400
        assert "upgrade to websocket" in answer.error["message"]


def test_a_client_that_offers_http2_gets_http1(server):
    """Java's HttpClient and `curl --http2` send such requests."""
    with RawClient(server.port) as client:
        client.post("/v1/completions", SHORT, connection="Upgrade, HTTP2-Settings", upgrade="h2c", http2_settings="AA")
        answer = client.read()
        assert (answer.status, answer.headers["connection"]) == (200, "close")


def test_a_client_that_does_not_read_is_disconnected_and_its_request_cancelled(impatient):
    aborted = _num_aborted(impatient)
    with RawClient(impatient.port, receive_buffer=4096) as client:
        client.post("/v1/completions", LOUD)
        wait_until(lambda: _num_aborted(impatient) == aborted + 8)
        impatient.wait_logged("has read nothing for 2 s (--http-send-timeout)")


def test_a_client_that_reads_slowly_gets_everything(server):
    with RawClient(server.port) as client:
        client.post("/v1/completions", LOUD | {"max_tokens": 50})
        assert client.read().body.endswith(b"data: [DONE]\n\n")


def _num_aborted(server: ServerProcess) -> float:
    return server.metric("vllm:request_success_total", finished_reason="abort")
