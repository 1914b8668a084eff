"""uvicorn's server with a graceful shutdown that also serves connections waiting to be accepted."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Generator
from functools import partial
from itertools import chain

import uvicorn

_FIRST_REQUEST_S = 1.0
"""The seconds that a connection accepted during shutdown has to send its first request."""
_POLL_S = 0.01


class GracefulServer(uvicorn.Server):
    """A server on the event loop. It handles no signals, because uvicorn's handlers would end the process."""

    def announce_close(self) -> None:
        """Adds `connection: close` to each further response, and closes that response's connection.

        A connection whose response headers are already sent stays open, because its client may be sending
        another request.
        """
        close = (b"connection", b"close")
        self.config.encoded_headers.append(close)
        self.server_state.default_headers = [*self.server_state.default_headers, close]
        for connection in self.server_state.connections:
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and not cycle.response_started:
                cycle.keep_alive = False

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes the port, but serves connections waiting to be accepted. Closing alone would reset them."""
        last = [listener.dup() for listener in sockets or []]
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        create_protocol = partial(  # type: ignore[call-arg]
            self.config.http_protocol_class, config=self.config, server_state=self.server_state, app_state={}
        )
        for client in chain.from_iterable(map(_take_waiting, last)):
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().connect_accepted_socket(create_protocol, client)
        await self._wait_first_requests()
        await super().shutdown(sockets=[])

    async def _wait_first_requests(self) -> None:
        """Waits for the first requests of new connections. They would get no responses after the shutdown."""
        deadline_s = time.monotonic() + _FIRST_REQUEST_S
        while not self.force_exit and time.monotonic() < deadline_s:
            if all(getattr(c, "cycle", None) is not None for c in self.server_state.connections):
                return
            await asyncio.sleep(_POLL_S)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


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
