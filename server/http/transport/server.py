"""The HTTP server: accepts connections, and ends so that every request gets a response."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from functools import partial

from server.http.transport.connection import Connection, Serving
from server.http.transport.tls_handshake import TlsHandshake

BACKLOG = 2048
"""The most connections that wait to be accepted."""
_FIRST_REQUEST_S = 1.0
"""The seconds that a connection accepted during shutdown has to send its first request."""
_POLL_S = 0.01


class HttpServer:
    """Serves on one socket, until `stop` is set. With `is_forced`, it then waits for no request."""

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        self.stop = asyncio.Event()
        self.is_forced = False

    def announce_close(self) -> None:
        """Closes the connection of each response that begins from now on, and says so in its headers."""
        self.serving.is_ending = True

    async def serve(self, listener: socket.socket) -> None:
        """Accepts connections until `stop` is set. Then closes the port and the connections."""
        accepting = await asyncio.get_running_loop().create_server(
            self._create_connection, sock=listener, backlog=BACKLOG
        )
        await self.stop.wait()
        last = listener.dup()
        accepting.close()
        listener.close()
        await self.end(last)

    async def end(self, listener: socket.socket) -> None:
        """Serves connections waiting to be accepted, which closing would reset. Closes all connections."""
        loop, serving = asyncio.get_running_loop(), self.serving
        for client in _take_waiting(listener):
            with contextlib.suppress(OSError):
                await loop.connect_accepted_socket(self._create_connection, client)
        # later, first requests would get no responses
        await self._wait(_FIRST_REQUEST_S, lambda: all(each.has_begun for each in serving.connections))
        for connection in list(serving.connections):
            connection.end_soon()
        await asyncio.sleep(_POLL_S)  # sends what has been written, even if nothing is waited for
        if not await self._wait(serving.delivery_s, lambda: not (serving.connections or serving.tasks)):
            for task in serving.tasks:
                task.cancel()

    async def _wait(self, timeout_s: float, is_done: Callable[[], bool]) -> bool:
        deadline_s = time.monotonic() + timeout_s
        while not is_done():
            if self.is_forced or time.monotonic() >= deadline_s:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    def _create_connection(self) -> asyncio.BaseProtocol:
        serving = self.serving
        if serving.tls is None:
            return Connection(serving)
        create = partial(Connection, serving)
        return TlsHandshake(serving.tls(), serving.limits, serving.table, serving.connections, create)


def _take_waiting(listener: socket.socket) -> list[socket.socket]:
    """Accepts all waiting connections and closes the socket right after the last one."""
    listener.setblocking(False)
    clients: list[socket.socket] = []
    with contextlib.suppress(OSError), listener:
        while True:
            clients.append(listener.accept()[0])
    return clients


def bound_unsent_bytes(listener: socket.socket, num_bytes: int) -> None:
    """Limits the bytes that the kernel keeps for each client of the listener, before it sends them."""
    if listener.family in (socket.AF_INET, socket.AF_INET6):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, num_bytes)
