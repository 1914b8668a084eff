"""The HTTP server: accepts connections, and ends so that every request gets a response."""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial

from server.http.transport.connection import Connection, HttpOptions, Serving
from server.http.transport.request import Request
from server.http.transport.tls_handshake import TlsHandshake

logger = logging.getLogger(__name__)

BACKLOG = 2048
"""The most connections that wait to be accepted."""
_FIRST_REQUEST_S = 1.0
"""The seconds that a connection accepted during shutdown has to send its first request."""
_POLL_S = 0.01


class HttpServer:
    """Serves on one socket. Used on the event loop."""

    def __init__(self, handle: Callable[[Request], Awaitable[None]], options: HttpOptions) -> None:
        """`handle` answers a request."""
        self.serving = Serving(handle, options)
        self._options = options
        self._is_stopped = asyncio.Event()
        self.is_forced = False
        """Whether `serve` waits for no request when it ends."""

    @property
    def is_stopped(self) -> bool:
        return self._is_stopped.is_set()

    def announce_close(self) -> None:
        """Adds `connection: close` to each further response, and closes that response's connection.

        A connection whose response headers are already sent stays open, because its client may be sending
        another request.
        """
        self.serving.is_ending = True

    def stop(self) -> None:
        """Makes `serve` end."""
        self._is_stopped.set()

    async def serve(self, listener: socket.socket) -> None:
        """Accepts connections until `stop` is called. Then closes the port and the connections."""
        accepting = await asyncio.get_running_loop().create_server(
            self._create_connection, sock=listener, backlog=BACKLOG
        )
        await self._is_stopped.wait()
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
        await self._wait(_FIRST_REQUEST_S, self._have_all_begun)  # later, they would get no responses
        for connection in list(serving.connections):
            connection.end_soon()
        await asyncio.sleep(_POLL_S)  # sends what has been written, even if nothing is waited for
        if not await self._wait(self._options.delivery_s, lambda: not (serving.connections or serving.tasks)):
            logger.debug("cancelling %d requests, because the server ends", len(serving.tasks))
            for task in serving.tasks:
                task.cancel()

    async def _wait(self, timeout_s: float | None, is_done: Callable[[], bool]) -> bool:
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not is_done():
            if self.is_forced or (deadline_s is not None and time.monotonic() >= deadline_s):
                return False
            await asyncio.sleep(_POLL_S)
        return True

    def _have_all_begun(self) -> bool:
        return all(connection.has_begun for connection in self.serving.connections)

    def _create_connection(self) -> asyncio.Protocol:
        serving, options = self.serving, self._options
        if options.tls is None:
            return Connection(serving)
        create = partial(Connection, serving)
        return TlsHandshake(options.tls(), options.limits, serving.table, serving.connections, create)


def _take_waiting(listener: socket.socket) -> list[socket.socket]:
    """Accepts all waiting connections and closes the socket right after the last one."""
    listener.setblocking(False)
    clients: list[socket.socket] = []
    with contextlib.suppress(OSError), listener:
        while True:
            clients.append(listener.accept()[0])
    return clients


def bound_unsent_bytes(listener: socket.socket, num_bytes: int) -> None:
    """Limits the kernel's send buffer, which would hold megabytes for each client that does not read.

    The limit applies to connections that the listener accepts. Sent bytes do not count, even if the client
    has not acknowledged them.
    """
    if listener.family in (socket.AF_INET, socket.AF_INET6):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, num_bytes)
