"""What clients send is parsed in slices, whose sum is the same however the bytes arrive."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from server.http.transport.connection import Connection, Serving
from server.http.transport.http_request import Request
from server.terms.held_bytes import HeldBytes
from server.terms.http_body.response_body import Answer
from server.terms.limits import LimitsConfig
from tests.contracts.hostile_requests import AMBIGUOUS, GARBAGE, statuses

Handler = Callable[[Request], Awaitable[None]]

HEAD = b"POST /read HTTP/1.1\r\nhost: x\r\n"
GET = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
UPGRADE = b"connection: Upgrade, keep-alive\r\nupgrade: h2c\r\n"
MOST_BYTES_PER_TURN = 32 * (64 + 4 * 4)
"""Of bodies in chunks of a byte: 32 in each slice, for the slices of a turn and the first of four clients."""


class MemoryTransport(asyncio.Transport):
    """Keeps what a connection writes."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_paused = self.is_closed = False
        self._socket, self._other = socket.socketpair()

    def close_sockets(self) -> None:
        self._socket.close()
        self._other.close()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._socket if name == "socket" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self.is_closed

    def write(self, data: Any) -> None:
        assert not self.is_closed
        self.written += data

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


class Client:
    """Feeds a connection as the event loop does."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self.transport = MemoryTransport()
        self.connection = Connection(serving)
        self.connection.connection_made(self.transport)

    async def send(self, data: bytes, piece_bytes: int = 65_536) -> None:
        """Sends pieces, each of them once the connection reads again."""
        for begin in range(0, len(data), piece_bytes):
            while self.transport.is_paused and not self.transport.is_closed:
                await asyncio.sleep(0)
            if self.transport.is_closed:
                break
            self.send_at_once(data[begin : begin + piece_bytes])
        await settle()

    def send_at_once(self, data: bytes) -> None:
        """Sends data that one read from the socket returns."""
        self.connection.get_buffer(-1)[: len(data)] = data
        self.connection.buffer_updated(len(data))

    def leave(self) -> None:
        if self.connection in self._serving.connections:
            self.connection.connection_lost(None)
        self.transport.close_sockets()


async def settle() -> None:
    """Waits until the tasks of all small requests have ended."""
    for _ in range(200):
        await asyncio.sleep(0)


async def read_all(request: Request) -> None:
    """Answers with the version, the method and the body."""
    body = b""
    while parts := await request.read():
        body += b"".join(parts)
    await request.send(Answer(b"%b %b %b" % (request.version.encode(), request.method.encode(), body)))


def create_serving(handle: Handler = read_all, **settings: Any) -> Serving:
    return Serving(handle=handle, limits=LimitsConfig(), held=settings.pop("held", None) or HeldBytes(), **settings)


async def answers_to(data: bytes, piece_bytes: int, **settings: Any) -> tuple[bytes, bool]:
    """What the server writes, without dates, and whether it closes the connection."""
    client = Client(create_serving(**settings))
    await client.send(data, piece_bytes)
    lines = client.transport.written.split(b"\r\n")
    found = b"\r\n".join(line for line in lines if not line.startswith(b"date:")), client.transport.is_closed
    client.leave()
    return found


REQUESTS = {
    "requests in a row": GET * 3 + HEAD + b"content-length: 3\r\n\r\nabc" + GET,
    "chunks, extensions and trailers": CHUNKED + b"1;x=y\r\na\r\n2\r\n\r\n\r\n0\r\nt: u\r\n\r\n" + GET,
    "a body that looks like requests": HEAD + b"content-length: %d\r\n\r\n" % (2 * len(GET)) + GET * 2 + GET,
    "chunks that look like the last": CHUNKED + b"5\r\n0\r\n\r\n\r\n2\r\n\r\n\r\n0\r\n\r\n" + GET,
    "empty lines": b"\r\n\r\n" + GET + b"\r\n\r\n\r\n" + GET,
    "an upgrade with a body": HEAD + UPGRADE + b"content-length: 3\r\n\r\nabc" + GET,
    "an upgrade with chunks": HEAD + UPGRADE + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + GET,
    "a trailer that closes": CHUNKED + b"1\r\na\r\n0\r\nconnection: close\r\n\r\n" + GET,
    "many requests behind chunks": CHUNKED + b"1\r\na\r\n" * 300 + b"0\r\n\r\n" + GET * 100,
    **AMBIGUOUS,
    **GARBAGE,
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_the_division_of_the_input_changes_no_response(name):
    data = REQUESTS[name]
    whole = await answers_to(data, len(data))
    for piece_bytes in (1, 2, 3, 5, 17, 64, 100):
        assert await answers_to(data, piece_bytes) == whole, piece_bytes


@pytest.mark.parametrize("name", [name for name in REQUESTS if name not in AMBIGUOUS and name not in GARBAGE])
async def test_each_request_of_a_connection_is_answered(name):
    """After a request that closes the connection, none is."""
    written, is_closed = await answers_to(REQUESTS[name], 65_536)
    is_last = "upgrade" in name or "closes" in name
    num_expected = 1 if is_last else REQUESTS[name].count(b"/read") + REQUESTS[name].count(b"/a")
    if name == "a body that looks like requests":
        num_expected -= 2
    assert (statuses(written), is_closed) == ([200] * num_expected, is_last)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"POST /a HTTP/1.0\r\n" + UPGRADE + b"content-length: 1\r\n\r\nb", b"1.0 POST b"),
        (b"POST /a HTTP/1.1\r\n" + UPGRADE + b"content-length: 1\r\n\r\nb", b"1.1 POST b"),
        (b"GET /a HTTP/1.0\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", b"1.0 GET "),
    ],
    ids=["HTTP/1.0", "HTTP/1.1", "a WebSocket of HTTP/1.0"],
)
async def test_an_upgrade_that_is_not_taken_changes_nothing_of_the_request(head, expected):
    written, is_closed = await answers_to(head, 65_536, takes_websockets=True)
    assert written.endswith(b"\r\n\r\n" + expected)
    assert is_closed


async def test_other_options_of_an_upgrade_s_connection_header_are_kept():
    seen: list[tuple[bytes, bytes]] = []

    async def note(request: Request) -> None:
        seen.extend(request.headers)
        await request.send(Answer())

    await answers_to(
        b"GET /a HTTP/1.1\r\nx: y\r\nconnection: a, Upgrade ,b\r\nupgrade: h2c\r\n\r\n", 65_536, handle=note
    )
    assert seen == [(b"connection", b"close"), (b"x", b"y"), (b"connection", b"a, b")]


@pytest.fixture
async def slow_clients() -> AsyncIterator[tuple[Serving, list[Client], asyncio.Event]]:
    """A server with a small limit of held bytes, five clients, and an event that lets `GET /slow` end."""
    may_end = asyncio.Event()

    async def handle(request: Request) -> None:
        if request.path == "/slow":
            await may_end.wait()
        await read_all(request)

    serving = create_serving(handle, held=HeldBytes(200_000))
    clients = [Client(serving) for _ in range(5)]
    yield serving, clients, may_end
    for client in clients:
        client.leave()


SLOW = b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n"


async def test_requests_behind_a_running_one_are_counted_and_freed(slow_clients):
    serving, clients, may_end = slow_clients
    body = HEAD + b"content-length: 5000\r\n\r\n" + b"b" * 5000
    for client in clients:
        client.send_at_once(SLOW + body + GET)
    await settle()
    assert serving.held.num_waiting == 5 * 5000
    clients[0].leave()
    assert serving.held.num_waiting == 4 * 5000
    may_end.set()
    await settle()
    assert serving.held.num_waiting == 0
    assert all(statuses(client.transport.written) == [200] * 3 for client in clients[1:])


async def test_requests_behind_running_ones_are_dropped_above_the_limit(slow_clients):
    """The running requests are answered, and say that the connection ends."""
    serving, clients, may_end = slow_clients
    for client in clients:
        client.send_at_once((SLOW + HEAD + b"content-length: 90000\r\n\r\n").ljust(60_000, b"b"))
    await settle()
    assert 0 < serving.held.num_waiting <= 200_000
    may_end.set()
    await settle()
    ended = [client for client in clients if client.transport.is_closed]
    assert 1 <= len(ended) < len(clients)
    assert all(b"connection: close" in client.transport.written for client in ended)


async def test_a_connection_reads_no_more_while_much_waits_behind_its_request(slow_clients):
    _, (client, *_), may_end = slow_clients
    client.send_at_once(SLOW + HEAD + b"content-length: 9000\r\n\r\n" + b"b" * 8000)
    assert client.transport.is_paused
    may_end.set()
    await settle()
    assert not client.transport.is_paused


@pytest.mark.parametrize("path", [b"/read", b"/nowhere"])
async def test_a_turn_of_the_loop_parses_few_chunks_of_all_connections_together(path):
    num_read = 0

    async def handle(request: Request) -> None:
        nonlocal num_read
        if request.path == "/read":
            while parts := await request.read():
                num_read += sum(map(len, parts))
        await request.send(Answer())

    serving = create_serving(handle)
    clients = [Client(serving) for _ in range(4)]
    data = CHUNKED.replace(b"/read", path) + b"1\r\na\r\n" * 8000
    for client in clients:
        client.send_at_once(data)
    num_before, num_turns = 0, 0
    while num_before < 4 * 7000 and num_turns < 10_000:
        await asyncio.sleep(0)
        parsed = num_read + sum(client.connection._num_dropped_bytes for client in clients)
        parsed += sum(client.connection._newest.num_unread_bytes for client in clients)
        assert parsed - num_before <= MOST_BYTES_PER_TURN
        num_before = parsed
        num_turns += 1
    assert 10 < num_turns < 10_000
    for client in clients:
        client.leave()
    await settle()
