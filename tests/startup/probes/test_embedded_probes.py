"""The responder answers probes for a server that accepts itself, while that server's event loop is held."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any

import psutil
import pytest
import uvicorn
import uvloop

from base.security.open_paths import PROBE_PATHS
from server.limits import LimitsConfig
from server.server_config import ServerConfig
from server.transport.connection import bounded_connections
from server.transport.graceful_server import GracefulServer
from startup.probes.embedded_probes import EmbeddedProbes
from startup.probes.listener import listen
from startup.probes.responder import StartupResponder
from tests.startup.probes.conftest import Answers


class _Server:
    """A server that counts its requests, with its responder, on the running event loop."""

    def __init__(self, listener: socket.socket, responder: StartupResponder, limits: LimitsConfig) -> None:
        self.is_ready = True
        self.paths: list[str] = []
        self.clients = ExitStack()
        self._listener = listener
        self._responder = responder
        self.probes = EmbeddedProbes(responder, ServerConfig(served_model_names=("m",)), PROBE_PATHS)
        http: Any = bounded_connections(limits, None, self.probes)
        config = uvicorn.Config(self._answer, http=http, log_config=None, ws="none", lifespan="off", interface="asgi3")
        config.load()
        self.http = GracefulServer(config)

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        self.paths.append(scope["path"])
        status = 200 if self.is_ready else 503
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    def find_healthy_head(self) -> bytes | None:
        return b"HTTP/1.1 200 OK\r\nx: responder\r\ncontent-length: 0\r\n" if self.is_ready else None

    async def adopt(self, client: socket.socket) -> None:
        await self.http.adopt(client)

    def set_ready(self, is_ready: bool) -> None:
        self.is_ready = is_ready
        self.probes.refresh()

    @property
    def responder_process(self) -> psutil.Process:
        assert self._responder._pid is not None
        return psutil.Process(self._responder._pid)

    async def connect(self) -> "_Client":
        client = await asyncio.to_thread(_Client, self._listener.getsockname())
        self.clients.enter_context(client.socket)
        return client

    async def ask_lent(self, path: str = "/health") -> "_Client":
        """A client whose first probe was answered by the server, which then has lent the connection."""
        while (await (client := await self.connect()).ask(path)).is_of_responder:
            client.socket.close()  # the loop was late
        await self.wait_lent(1)
        self.paths.clear()
        return client

    async def wait_lent(self, number: int) -> None:
        while len(self.probes._lent) != number:
            await asyncio.sleep(0.01)


def _ask_held(question: Callable[[], "_Response"]) -> "_Response":
    """The answer to a question, asked in a thread; the event loop is held until it is there."""
    with ThreadPoolExecutor() as pool:
        return pool.submit(question).result(60)


def _ask_once(address: Any, path: str) -> "_Response":
    client = _Client(address)
    with client.socket:
        return client.ask_now(path)


class _Response:
    def __init__(self, data: bytes) -> None:
        self.status = int(data.split()[1]) if data else 0
        self.is_of_responder = b"x: responder" in data


class _Client:
    def __init__(self, address: Any) -> None:
        self.socket = socket.create_connection(address, timeout=60)

    async def ask(self, path: str) -> _Response:
        return await asyncio.to_thread(self.ask_now, path)

    def ask_now(self, path: str) -> _Response:
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        return self.read_now()

    def read_now(self) -> _Response:
        with self.socket.dup() as reading:
            return _Response(reading.recv(1 << 12))


def _run(test: Callable[[_Server], Awaitable[None]], limits: LimitsConfig | None = None) -> None:
    async def run() -> None:
        async with _serving(listener, responder, limits or LimitsConfig()) as server, asyncio.timeout(60):
            await test(server)

    with listen(host="127.0.0.1", port=0, uds=None) as listener, StartupResponder(listener, Answers()) as responder:
        uvloop.run(run())


@asynccontextmanager
async def _serving(
    listener: socket.socket, responder: StartupResponder, limits: LimitsConfig
) -> AsyncIterator[_Server]:
    server = _Server(listener, responder, limits)
    assert await server.probes.start(server)
    early = await server.connect()
    assert (await early.ask("/version")).status == 200  # the responder passes it on
    server.paths.clear()
    early.socket.close()
    serving = asyncio.create_task(server.http.serve([listener]))
    while not server.http.started:
        await asyncio.sleep(0.01)
    try:
        yield server
    finally:
        await server.probes.end()
        server.clients.close()
        server.http.should_exit = True
        await serving


@pytest.mark.parametrize("path", PROBE_PATHS)
def test_a_new_connection_is_accepted_and_answered_while_the_loop_is_held(path):
    async def test(server: _Server) -> None:
        address = server._listener.getsockname()
        while (answer := _ask_held(lambda: _ask_once(address, path))).status == 503:
            await asyncio.sleep(0.2)  # it was held for more than 2 s
        assert answer.status == 200
        assert answer.is_of_responder
        assert not server.paths

    _run(test)


@pytest.mark.parametrize("path", PROBE_PATHS)
def test_a_client_that_probes_again_is_answered_while_the_loop_is_held(path):
    async def test(server: _Server) -> None:
        client = await server.ask_lent(path)
        for _ in range(3):
            assert _ask_held(lambda: client.ask_now(path)).is_of_responder
        assert not server.paths

    _run(test)


def test_any_other_request_on_a_lent_connection_reaches_the_server_and_ends_the_lending():
    async def test(server: _Server) -> None:
        client = await server.ask_lent()
        for path in ("/version", "/health", "/health"):
            answer = await client.ask(path)
            assert answer.status == 200
            assert not answer.is_of_responder
        assert server.paths == ["/version", "/health", "/health"]

    _run(test)


def test_the_server_answers_probes_itself_from_the_moment_it_is_not_ready():
    async def test(server: _Server) -> None:
        client = await server.ask_lent()
        server.set_ready(False)
        answer = await client.ask("/health")
        assert answer.status == 503
        assert not answer.is_of_responder
        assert (await (await server.connect()).ask("/health")).status == 503
        server.set_ready(True)
        assert not (await client.ask("/health")).is_of_responder
        await server.wait_lent(1)
        assert (await client.ask("/health")).is_of_responder

    _run(test)


def test_a_lent_connection_makes_room_for_a_new_one():
    async def test(server: _Server) -> None:
        client = await server.ask_lent()
        other = await server.connect()
        assert (await other.ask("/version")).status == 200
        assert (await asyncio.to_thread(client.read_now)).status == 0
        await server.wait_lent(0)

    _run(test, LimitsConfig(max_connections=1))


@pytest.mark.parametrize("number", ["kill", "suspend"])
def test_lent_connections_are_served_if_the_responder_ends_or_hangs(number):
    async def test(server: _Server) -> None:
        client = await server.ask_lent()
        getattr(server.responder_process, number)()
        answer = await client.ask("/health")
        assert answer.status == 200
        assert not answer.is_of_responder
        assert (await (await server.connect()).ask("/version")).status == 200

    _run(test)


def test_all_lent_connections_are_taken_back_at_the_end():
    async def test(server: _Server) -> None:
        client = await server.ask_lent()
        responder = server.responder_process
        await server.probes.end()
        assert not (await client.ask("/health")).is_of_responder
        assert server.paths == ["/health"]
        with suppress(psutil.NoSuchProcess):
            responder.wait(60)

    _run(test)


def test_a_client_that_leaves_is_forgotten():
    async def test(server: _Server) -> None:
        client = await server.ask_lent()
        client.socket.close()
        await server.wait_lent(0)
        while server.http.server_state.connections:
            await asyncio.sleep(0.01)

    _run(test)
