"""TLS handshakes of connections. A handshake counts as a connection, and has the time limit of headers."""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from uvloop.loop import SSLProtocol  # type: ignore[attr-defined]  # the stubs contain only the loop

from server.http.transport.connection_table import ConnectionTable
from server.terms.limits import LimitsConfig


class TlsHandshake(asyncio.Protocol):
    """Represents a connection in uvicorn's set until the handshake ends. Runs on the event loop.

    With uvloop's own TLS listener, a connection reaches the server only after its handshake. Connections
    that never complete the handshake could not be counted, closed to make room, or closed at shutdown.
    """

    cycle = None
    """An attribute of uvicorn's connections. None means that no request has arrived."""

    def __init__(
        self,
        context: ssl.SSLContext,
        limits: LimitsConfig,
        table: ConnectionTable,
        connections: set[Any],
        create_connection: Callable[[asyncio.Transport], asyncio.Protocol],
    ) -> None:
        """`connections` is uvicorn's set. `create_connection` takes the transport below TLS."""
        self._context = context
        self._limits = limits
        self._table = table
        self._connections = connections
        self._create_connection = create_connection
        self._carrier: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._carrier = transport
        self._connections.add(self)
        self._table.add(self)
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        ended.add_done_callback(self._on_handshake_end)
        tls = SSLProtocol(
            loop,
            _HandshakeDone(self._start_connection),
            self._context,
            ended,
            server_side=True,
            ssl_handshake_timeout=self._limits.header_timeout_s,
            ssl_shutdown_timeout=self._limits.send_timeout_s,
        )
        transport.set_protocol(tls)
        tls.connection_made(transport)
        self._table.check_free_files(transport.get_extra_info("socket").fileno())

    def shutdown(self) -> None:
        """Called by uvicorn when the server shuts down."""
        self._carrier.abort()

    def evict(self) -> bool:
        """Closes the connection immediately, because no request has arrived yet."""
        self._carrier.abort()
        return True

    def _start_connection(self, transport: asyncio.Transport) -> None:
        self._leave()
        connection = self._create_connection(self._carrier)
        transport.set_protocol(connection)
        connection.connection_made(transport)

    def _on_handshake_end(self, ended: asyncio.Future[None]) -> None:
        """Called when the handshake has succeeded, failed or timed out, or the client has disconnected."""
        ended.exception()  # marks the error as retrieved; uvloop has closed the connection
        self._leave()

    def _leave(self) -> None:
        self._connections.discard(self)
        self._table.discard(self)


class _HandshakeDone(asyncio.Protocol):
    """Reports the end of the handshake. After that, the HTTP connection becomes the transport's protocol."""

    def __init__(self, on_done: Callable[[asyncio.Transport], None]) -> None:
        self._on_done = on_done

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._on_done(transport)
