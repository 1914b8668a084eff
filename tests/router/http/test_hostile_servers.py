"""A model's server that breaks the rules of HTTP harms no other client, and gets no request twice."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from router.child.server import ForeignServer
from router.http import proxy as proxy_module
from router.http.answer_check import answer_fault, below, leads_up
from router.http.proxy import headers_to_server
from router.http.waiting import Patience
from router.model_entry import ForeignCommand
from tests.router.http.small_router import SmallChild
from tests.router.http.test_proxy import CHAT, body_of

Behaviour = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
STRAY = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray"


class RawServer:
    """A server that notes each request, and answers as a test says."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.num_connections = 0
        self.behaviour: Behaviour = self.answer_ok
        self.writers: list[asyncio.StreamWriter] = []

    @staticmethod
    async def answer_ok(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self.writers.append(writer)
        with suppress(OSError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = [
                    int(line[16:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: ")
                ]
                await reader.readexactly(sum(length))
                self.requests.append(head)
                await self.behaviour(head, writer)
                if writer.is_closing():
                    return

    @asynccontextmanager
    async def serving(self, router: Any, transport: str = "tcp") -> AsyncIterator[SmallChild]:
        if transport == "unix":
            path = router.folder / "s"
            server = await asyncio.start_unix_server(self._serve, str(path))
            child = SmallChild(path)
        else:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            child = SmallChild(base_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        async with server:
            await router.serve("m")
            await router.pool.start("m", child)
            try:
                yield child
            finally:
                for writer in self.writers:
                    writer.close()
                await child.close()


@pytest.fixture
def raw() -> RawServer:
    return RawServer()


@pytest.fixture(params=["tcp", "unix"])
async def server(request, raw, router):
    async with raw.serving(router, request.param):
        yield raw


@pytest.mark.parametrize(
    "stray", [STRAY, b"x", b"HTTP/1.1 408 Timeout\r\n\r\n", b""], ids=["whole", "byte", "head", "end"]
)
@pytest.mark.parametrize("is_read", [False, True], ids=["unread", "read"])
async def test_what_nobody_has_asked_for_goes_to_nobody(stray, is_read, server, ask):
    for _ in range(3):
        assert (await ask("POST", CHAT, data=body_of())).body == b"ok"
        writer = server.writers[-1]
        writer.write(stray) if stray else writer.write_eof()
        if is_read:
            await asyncio.sleep(0.05)
        assert (await ask("GET", "/v1/x?model=m")).body == b"ok"
        server.writers[-1].close()


async def test_a_connection_to_a_server_of_ours_is_reused(raw, router, ask):
    async with raw.serving(router, "unix"):
        for _ in range(5):
            assert (await ask("POST", CHAT, data=body_of())).body == b"ok"
    assert raw.num_connections == 1


async def test_a_late_response_does_not_meet_the_next_request(raw, router, ask):
    """It arrives after the next request was sent, which no check of an idle connection can notice."""

    async def late(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(STRAY if len(raw.requests) > 1 and writer is raw.writers[0] else OK)

    raw.behaviour = late
    async with raw.serving(router, "tcp"):
        answers = [(await ask("POST", CHAT, data=body_of())).body for _ in range(4)]
    assert answers == [b"ok"] * 4


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 0 No\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 99 No\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 600 No\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 999 No\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 99999 No\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 205 Reset\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nX-A: a\nb\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX-A: a\rb\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX-A: a\x00b\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX-A: a\x1b[2J\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX A: a\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n: a\r\nContent-Length: 2\r\n\r\nok",
    ],
    ids=lambda answer: answer[9:40].decode().strip(),
)
async def test_an_answer_that_is_not_valid_is_not_passed_on(answer, server, ask):
    async def lie(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    server.behaviour = lie
    refused = await ask("POST", CHAT, data=body_of())
    assert refused.status in (502, 503)
    assert "set-cookie" not in refused.headers
    server.behaviour = server.answer_ok
    assert (await ask("POST", CHAT, data=body_of())).body == b"ok"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nX-A: a\nSet-Cookie: b\r\n\r\n",
        b"HTTP/1.1 101 X\r\nX A: a\r\n\r\n",
        b"HTTP/1.1 0 X\r\n\r\n",
        b"SSH-2.0 101 X\r\n\r\n",
        b"HTTP/1.1 +101 X\r\n\r\n",
        b"HTTP/1.1 99999 X\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
async def test_a_handshake_that_is_not_valid_is_not_passed_on(answer, server, ask):
    async def lie(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    server.behaviour = lie
    key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13"}
    refused = await ask("GET", "/v1/realtime?model=m", headers={"Connection": "Upgrade", "Upgrade": "websocket", **key})
    assert refused.status in (502, 503)
    assert "set-cookie" not in refused.headers


_NUM_CHUNKS = 1 << 16
_MOST_CHUNKS = 1100
"""Of a byte, which aiohttp parses between two reads."""


async def _send_chunks_of_a_byte(head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    writer.write(b"1\r\nx\r\n" * _NUM_CHUNKS + b"0\r\n\r\n")


@pytest.fixture
async def num_turns() -> AsyncIterator[Callable[[], int]]:
    """Returns how many turns the event loop has taken."""
    loop, turns = asyncio.get_running_loop(), itertools.count()

    def turn() -> None:
        nonlocal handle
        next(turns)
        handle = loop.call_soon(turn)

    handle = loop.call_soon(turn)
    yield lambda: next(turns)
    handle.cancel()


async def test_few_chunks_of_a_response_are_parsed_in_a_turn(raw, router, num_turns):
    raw.behaviour = _send_chunks_of_a_byte
    async with raw.serving(router, "unix"):
        reader, _ = await router.connect(b"GET /v1/x?model=m HTTP/1.1\r\nHost: h\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        begin, sizes = num_turns(), [-1]
        while sizes[-1]:
            sizes.append(int(await reader.readuntil(b"\r\n"), 16))
            assert await reader.readexactly(sizes[-1] + 2) == sizes[-1] * b"x" + b"\r\n"
    assert sum(sizes[1:]) == _NUM_CHUNKS
    assert max(sizes) < _MOST_CHUNKS
    assert num_turns() - begin >= _NUM_CHUNKS // _MOST_CHUNKS


async def test_few_chunks_of_an_answer_to_the_router_are_parsed_in_a_turn(raw, router, num_turns, monkeypatch):
    monkeypatch.setattr(proxy_module, "_ANSWER_S", 60.0)
    raw.behaviour = _send_chunks_of_a_byte
    async with raw.serving(router, "unix") as child:
        proxy = proxy_module.Proxy(router.pool, Patience())  # type: ignore[arg-type]
        begin = num_turns()
        assert await proxy.ask(child, "/health") == b"x" * _NUM_CHUNKS
        assert num_turns() - begin >= _NUM_CHUNKS // _MOST_CHUNKS


@pytest.mark.parametrize("method", ["POST", "PATCH", "GET"])
@pytest.mark.parametrize("end", ["close", "abort"])
async def test_a_request_that_was_read_is_repeated_only_if_that_changes_nothing(method, end, server, ask):
    await ask("POST", CHAT, data=body_of())  # the next request reuses the connection, if any does
    server.requests.clear()

    async def leave(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.close() if end == "close" else writer.transport.abort()

    server.behaviour = leave
    refused = await ask(method, "/v1/responses/x?model=m", **({"data": body_of()} if method != "GET" else {}))
    assert refused.status == 503
    assert len(server.requests) == 1 if method != "GET" else len(server.requests) >= 1


async def test_a_path_that_leads_up_is_refused(server, ask):
    for path in (
        "/upstream/m/../../admin",
        "/upstream/m/a/%2e%2e/b",
        "/upstream/m/a%2f..%5cb",
        "/v1/chat/./x",
        "/upstream/m/..;x/a",
    ):
        assert (await ask("GET", path)).status == 400, path
    assert server.requests == []


def test_dots_within_a_name_lead_nowhere():
    assert not any(map(leads_up, ("/v1/a..b", "/v1/...", "/v1/a.b", "/", "/v1/%252e%252e/x")))


@pytest.mark.parametrize("rest", ["/evil.example", "\\evil.example", "\t/evil.example", "", "path"])
def test_an_address_of_the_server_becomes_a_path_of_this_host(rest):
    location = below(b"", b"http://127.0.0.1:9/", b"http://127.0.0.1:9/" + rest.encode())
    assert location.startswith(b"/")
    assert location[1:2] not in (b"/", b"\\", b"\t")


def test_a_response_without_a_body_may_say_so():
    assert answer_fault(204, [(b"Content-Length", b"0")]) is None
    assert answer_fault(304, [(b"X-\xc3", b"a")]) is not None
    assert answer_fault(304, [(b"Content-Length", b"50"), (b"X-A", b"caf\xe9\tb")]) is None


async def test_a_login_in_an_address_replaces_the_clients_and_is_not_shown():
    server = ForeignServer(ForeignCommand(arguments=(), address="http://me:s%40crt@127.0.0.1:9", port=9), {})
    assert server.base_url == "http://127.0.0.1:9"
    sent = headers_to_server([(b"authorization", b"Bearer theirs"), (b"x-a", b"1")], server, frozenset())  # type: ignore[arg-type]
    assert sent == [(b"x-a", b"1"), (b"authorization", b"Basic bWU6c0BjcnQ=")]
    await server.connector.close()
