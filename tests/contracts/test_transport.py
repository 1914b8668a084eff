"""Clients that send too much, too slowly, nothing or nonsense meet the same limits on each port of ours."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from math import inf
from typing import Any, Final

import pytest

from tests.contracts.conftest import MAX_CONNECTIONS, Served
from tests.contracts.hostile_requests import AMBIGUOUS, GARBAGE, statuses
from tests.support.http_client import RawClient, ask
from tests.support.waiting import wait_until

GET: Final = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD: Final = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
SECRET: Final = b"sk-secret"
TLS: Final = b"\x16\x03\x01\x02\x00\x01\x00"

all_ports = pytest.mark.parametrize("served", ["embedded", "router", "starting"], indirect=True, scope="module")
servers = pytest.mark.parametrize("served", ["embedded", "router"], indirect=True, scope="module")


@pytest.fixture(autouse=True)
def check_server_afterwards(served: Served) -> Iterator[None]:
    """After each test, both servers answer. The impatient one may find a client slow on a busy machine."""
    yield
    for port in served:
        wait_until(lambda port=port: ask(f"http://127.0.0.1:{port}/livez").status == 200)


@pytest.fixture
def connect(served: Served) -> Iterator[Callable[..., RawClient]]:
    """Connects a client that is closed after the test."""
    with ExitStack() as stack:

        def to(port: int, sent: bytes = b"") -> RawClient:
            return stack.enter_context(RawClient(port)).send(sent)

        yield to


def exchange(port: int, request: bytes) -> bytes:
    """Sends a request and the end. Returns all bytes until the server closes the connection."""
    with RawClient(port) as client, suppress(ConnectionError):  # it may close before it has read everything
        client.send(request).socket.shutdown(socket.SHUT_WR)
        return client.read_to_end()
    return b""


# Nonsense


@servers
@pytest.mark.parametrize("sent", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_a_request_with_ambiguous_length_is_rejected_and_ends_the_connection(served, sent):
    assert statuses(exchange(served.patient, sent)) in ([400], [501], [])


@all_ports
@pytest.mark.parametrize("sent", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_rejected_or_not_found(served, sent):
    received = exchange(served.patient, sent)
    assert set(statuses(received)) <= {200, 400, 404, 405, 503}, received
    assert b"root:" not in received
    assert b"\r\nx-injected" not in received.lower()


@servers
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(b"GET\r\n\r\n", 400, id="no HTTP"),
        pytest.param(b"OPTIONS * HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", (404, 405), id="OPTIONS"),
        pytest.param(b"GET /a%0ab HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 404, id="newline"),
        pytest.param(f"{HEAD}Transfer-Encoding: chunked\r\n\r\nzz\r\n".encode(), 400, id="chunks"),
    ],
)
def test_what_is_wrong_is_told_in_the_format_of_the_api(served, connect, sent, status):
    answer = connect(served.patient, sent).read()
    assert answer.error["code"] in (status if isinstance(status, tuple) else (status,))


# Too slow


@servers
@pytest.mark.parametrize(
    ("sent", "status", "flag"),
    [
        pytest.param(b"", None, "", id="nothing"),
        pytest.param(GET[:8], 408, "--http-header-timeout", id="a part of the line"),
        pytest.param(GET[:-2], 408, "--http-header-timeout", id="headers"),
        pytest.param(f"{HEAD}Content-Length: 100\r\n\r\n{{".encode(), 408, "--http-body-timeout", id="body"),
    ],
)
@pytest.mark.parametrize("trickles", [False, True], ids=["stops", "trickles"])
def test_a_slow_request_has_a_time_limit(served, connect, sent, status, flag, trickles):
    """The time-out is for all headers together, not for the time between two bytes."""
    begin_s = -inf
    while time.monotonic() - begin_s > 0.1:  # on a busy machine, the client itself may be too slow
        begin_s = time.monotonic()
        client = connect(served.impatient, sent)
    if trickles and sent:
        client.trickle()
    if status is not None:
        answer = client.read()
        assert (answer.status, flag in answer.error["message"]) == (status, True)
    if "body" not in flag:  # the rest of a body is awaited for a while
        assert client.is_closed()


# Too much


@servers
@pytest.mark.parametrize(
    ("head", "flag"),
    [
        pytest.param(GET[:-2] + b"x: " + SECRET + b"a" * 70_000, "--h11-max-incomplete-event-size", id="header"),
        pytest.param(GET[:-2] + b"x: " + SECRET * 9000 + b"\r\n\r\n", "--h11-max-incomplete-event-size", id="ended"),
        pytest.param(b"GET /" + SECRET * 9000, "--h11-max-incomplete-event-size", id="line"),
        pytest.param(
            GET[:-2] + b"".join(b"x-%d: %b\r\n" % (n, SECRET * 100) for n in range(80)) + b"\r\n",
            "--h11-max-incomplete-event-size",
            id="together",
        ),
        pytest.param(GET[:-2] + b"x: 1\r\n" * 256 + b"\r\n", "--h11-max-header-count", id="many"),
    ],
)
def test_too_large_heads_are_a_431_without_a_part_of_them(served, connect, head, flag):
    client = connect(served.patient)
    for begin in range(0, len(head), 50_000):
        with suppress(ConnectionError):
            client.send(head[begin : begin + 50_000])
    answer = client.read()
    assert (answer.status, flag in answer.error["message"]) == (431, True)
    assert SECRET not in answer.body


@servers
def test_as_many_headers_as_allowed_are_read(served, connect):
    assert connect(served.patient, GET[:-2] + b"x: 1\r\n" * 255 + b"\r\n").read().status == 200


@servers
@pytest.mark.parametrize(
    "rest",
    [
        b"Expect: 100-continue\r\nContent-Length: 1001\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n3e9\r\n" + b" " * 1001,
    ],
    ids=["announced", "chunked"],
)
def test_a_body_that_is_too_long_is_a_413(served, connect, rest):
    answer = connect(served.patient, HEAD.encode() + rest).read()
    assert (answer.status, "(--http-max-body-size)" in answer.error["message"]) == (413, True)


# Many connections


@all_ports
@pytest.mark.parametrize("sent", [b"", GET[:8], TLS, b"\0" * 100], ids=["nothing", "a part", "TLS", "zeros"])
def test_a_client_that_stalls_delays_no_other(served, connect, sent):
    for _ in range(3):
        connect(served.patient, sent)
    assert connect(served.patient, GET.replace(b"/health", b"/livez")).read().status == 200


@servers
def test_the_longest_idle_connections_make_room(served, connect):
    first, *_, last = (connect(served.patient) for _ in range(MAX_CONNECTIONS + 5))
    assert last.send(GET).read().status == 200
    assert first.is_closed()


@servers
def test_health_is_answered_when_all_connections_are_busy(served, connect):
    """An unfinished body keeps its connection busy."""
    for _ in range(MAX_CONNECTIONS):
        connect(served.patient, f"{HEAD}Content-Length: 100\r\n\r\n".encode())
    assert connect(served.patient, GET).read().status == 200


@servers
@pytest.mark.parametrize("size", [0, 1, 40])
@pytest.mark.parametrize("may_read", [False, True], ids=["disconnects", "stops sending"])
def test_a_client_that_ends_within_its_body_leaves_nothing_behind(served, connect, size, may_read):
    client: Any = connect(served.patient, f"{HEAD}Content-Length: 50\r\n\r\n".encode() + b"{" * size)
    if may_read:
        client.socket.shutdown(socket.SHUT_WR)
        assert client.is_closed()
