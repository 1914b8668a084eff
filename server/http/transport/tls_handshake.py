"""TLS handshakes of connections. A handshake counts as a connection, and has the time limit of headers."""

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from server.http.transport.connection_table import ConnectionTable
from server.terms.limits import LimitsConfig


class TlsHandshake(asyncio.Protocol):
    """Represents a connection in the server's set until the handshake ends. Runs on the event loop.

    With a TLS listener, a connection would reach the server only after its handshake. Connections that never
    complete the handshake could not be counted, closed to make room, or closed at shutdown.
    """

    has_begun = False
    """Whether a request has arrived."""

    def __init__(
        self,
        context: ssl.SSLContext,
        limits: LimitsConfig,
        table: ConnectionTable,
        connections: set[Any],
        create_connection: Callable[[asyncio.Transport], asyncio.BaseProtocol],
    ) -> None:
        """`connections` is the server's set. `create_connection` takes the transport below TLS."""
        self._context = context
        self._limits = limits
        self._table = table
        self._connections = connections
        self._create_connection = create_connection
        self._carrier: asyncio.Transport
        self._steps: Coroutine[Any, Any, Any]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._carrier = transport
        self._connections.add(self)
        self._table.add(self)
        self._steps = asyncio.get_running_loop().start_tls(
            transport,
            asyncio.Protocol(),
            self._context,
            server_side=True,
            ssl_handshake_timeout=self._limits.header_timeout_s,
            ssl_shutdown_timeout=self._limits.send_timeout_s,
        )
        # A task would begin too late: uvloop reads from the client as soon as this method has returned.
        self._steps.send(None).add_done_callback(self._on_handshake_end)
        self._table.check_free_files(transport.get_extra_info("socket").fileno())

    def end_soon(self) -> None:
        """Called when the server shuts down."""
        self._carrier.abort()

    def evict(self) -> bool:
        """Closes the connection immediately, because no request has arrived yet."""
        self._carrier.abort()
        return True

    def _on_handshake_end(self, ended: asyncio.Future[None]) -> None:
        """Called when the handshake has succeeded, failed or timed out, or the client has disconnected."""
        del ended  # its error refers to this frame
        self._connections.discard(self)
        self._table.discard(self)
        with suppress(OSError):  # uvloop has closed the connection
            try:
                self._steps.send(None)
            except StopIteration as end:
                transport: asyncio.Transport = end.value
                if not transport.is_closing():
                    connection = self._create_connection(self._carrier)
                    transport.set_protocol(connection)
                    connection.connection_made(transport)
