"""Misbehaving clients send too much, too slowly or nothing, do not read, or disconnect."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
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
MAX_CONNECTIONS = 300


@pytest.fixture(scope="module")
def server(tiny_llama: Path) -> Iterator[ServerProcess]:
    """A server with the default time-outs."""
    limits = ("--http-max-connections", str(MAX_CONNECTIONS), "--max-num-queued-reqs", "16")
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


@pytest.fixture(scope="module")
def slow_clients(impatient: ServerProcess) -> Iterator[dict[str, RawClient]]:
    """Clients that all run into a time-out at the same time. Their responses are not read yet."""
    sent = {
        "nothing": b"",
        "headers": GET[:-2],
        "body": f"{HEAD}content-length: 100\r\n\r\n{{".encode(),
        "burst": f"{HEAD}content-length: 20000000\r\n\r\n".encode() + b" " * 10_000_000,
        "refused": b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
        "trickle": GET[:-2] + b"x: ",
    }
    with ExitStack() as stack:
        clients = {name: stack.enter_context(RawClient(impatient.port)).send(data) for name, data in sent.items()}
        clients["trickle"].trickle()
        yield clients


def test_slow_headers_time_out(slow_clients):
    client = slow_clients["headers"]
    answer = client.read()
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    assert "2 s (--http-header-timeout)" in answer.error["message"]
    assert client.is_closed()


def test_trickling_headers_time_out_as_well(slow_clients):
    """The time-out is for all headers together, not for the time between two bytes."""
    assert slow_clients["trickle"].read().status == 408


@pytest.mark.parametrize(("name", "num_bytes"), [("body", 1), ("burst", 10_000_000)])
def test_a_slow_body_times_out(slow_clients, name, num_bytes):
    """A fast first part does not extend the time-out for the rest."""
    client = slow_clients[name]
    answer = client.read()
    assert answer.status == 408
    assert f"Only {num_bytes} bytes of the body arrived" in answer.error["message"]
    assert "2 s (--http-body-timeout)" in answer.error["message"]
    assert client.is_closed()


def test_the_body_of_a_rejected_request_times_out(slow_clients):
    assert slow_clients["refused"].read().status == 404
    assert slow_clients["refused"].is_closed()


def test_a_connection_without_a_request_is_closed(slow_clients):
    assert slow_clients["nothing"].is_closed()


@pytest.mark.parametrize(
    "head",
    [GET[:-2] + b"x: " + b"a" * 70_000, GET[:-2] + b"x: " + b"a" * 70_000 + b"\r\n\r\n", b"GET /" + b"a" * 70_000],
    ids=["header", "header with its end", "line"],
)
def test_too_large_headers_are_rejected(server, head):
    with RawClient(server.port) as client:
        answer = client.send(head).read()
        assert answer.status == 431
        assert "65536 bytes (--h11-max-incomplete-event-size)" in answer.error["message"]


@pytest.mark.parametrize("num", [255, 256])
def test_too_many_headers_are_rejected(server, num):
    with RawClient(server.port) as client:
        answer = client.send(GET[:-2] + b"x: 1\r\n" * num + b"\r\n").read()
        assert answer.status == (200 if num == 255 else 431)
        assert num == 255 or "256 headers (--h11-max-header-count)" in answer.error["message"]


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


def test_a_large_body_with_expect_continue_is_rejected_before_it_is_sent(server):
    with RawClient(server.port) as client:
        client.send(f"{HEAD}expect: 100-continue\r\ncontent-length: 50000000\r\n\r\n".encode())
        assert client.read().status == 413


def test_a_compressed_body_is_rejected(server):
    with RawClient(server.port) as client:
        answer = client.post("/v1/completions", SHORT, content_encoding="gzip").read()
        assert (answer.status, answer.headers["accept-encoding"]) == (415, "identity")
        assert "Content-Encoding 'gzip'" in answer.error["message"]


@pytest.mark.parametrize("size", [0, 1, 40])
@pytest.mark.parametrize("may_read", [False, True], ids=["disconnects", "stops sending"])
def test_a_client_that_ends_within_its_body_leaves_nothing_behind(server, size, may_read):
    with RawClient(server.port) as client:
        client.send(f"{HEAD}content-length: 50\r\n\r\n".encode() + b"{" * size)
        if may_read:
            client.socket.shutdown(socket.SHUT_WR)
            assert client.is_closed()


def test_invalid_http_is_a_400_in_the_api_s_error_format(server):
    """`test_hostile.py` has many more invalid requests."""
    with RawClient(server.port) as client:
        answer = client.send(b"GET\r\n\r\n").read()
        assert (answer.status, answer.error["type"]) == (400, "Bad Request")
        assert client.is_closed()


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


def test_idle_connections_make_room_for_new_ones(server):
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server.port)) for _ in range(MAX_CONNECTIONS + 50)]
        assert clients[-1].send(GET).read().status == 200
        assert clients[0].is_closed()
        assert server.health() == 200


def test_health_is_answered_when_all_connections_are_busy(server):
    """An unfinished body keeps its connection busy."""
    with ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            client = stack.enter_context(RawClient(server.port))
            client.send(f"{HEAD}content-length: 100\r\n\r\n".encode())
        with RawClient(server.port) as client:
            assert client.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").read().status == 200


def _num_aborted(server: ServerProcess) -> float:
    return server.metric("vllm:request_success_total", finished_reason="abort")
