"""TLS before HTTP: a connection counts from its first moment; its handshake has the time that headers have."""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from uvloop.loop import SSLProtocol  # type: ignore[attr-defined]  # the stubs know the loop alone

from server.limits import LimitsConfig
from server.transport.connection_table import ConnectionTable


class TlsHandshake(asyncio.Protocol):
    """What uvicorn has of a connection until both sides have agreed; lives on the event loop.

    uvloop's own listening socket would tell of a connection only when the handshake is over, so that nobody could count
    those that never come so far, end them for others that want their place, or when the server shuts down.
    """

    cycle = None
    """As uvicorn's connections have it: no request has come."""

    def __init__(
        self,
        context: ssl.SSLContext,
        limits: LimitsConfig,
        table: ConnectionTable,
        connections: set[Any],
        create_connection: Callable[[asyncio.Transport], asyncio.Protocol],
    ) -> None:
        """`connections` are uvicorn's; `create_connection` gets what carries the TLS, and gives what speaks within."""
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
        over = loop.create_future()
        over.add_done_callback(self._note_over)
        tls = SSLProtocol(
            loop,
            _Agreed(self._go_on),
            self._context,
            over,
            server_side=True,
            ssl_handshake_timeout=self._limits.header_timeout_s,
            ssl_shutdown_timeout=self._limits.send_timeout_s,
        )
        transport.set_protocol(tls)
        tls.connection_made(transport)
        self._table.note_file(transport.get_extra_info("socket").fileno())

    def shutdown(self) -> None:
        """uvicorn's word for it: the server ends."""
        self._carrier.abort()

    def evict(self) -> bool:
        """Makes room at once: nothing has been asked here yet."""
        self._carrier.abort()
        return True

    def _go_on(self, transport: asyncio.Transport) -> None:
        self._leave()
        connection = self._create_connection(self._carrier)
        transport.set_protocol(connection)
        connection.connection_made(transport)

    def _note_over(self, over: asyncio.Future[None]) -> None:
        """Agreed, failed, too late, or the client has gone."""
        over.exception()  # has been seen; uvloop has closed the connection
        self._leave()

    def _leave(self) -> None:
        self._connections.discard(self)
        self._table.discard(self)


class _Agreed(asyncio.Protocol):
    """Told when the handshake is over; something else takes its place at once."""

    def __init__(self, on_agreed: Callable[[asyncio.Transport], None]) -> None:
        self._on_agreed = on_agreed

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._on_agreed(transport)
