"""uvicorn's HTTP/1.1 connection, with limits for the size and speed of requests and responses.

The same limits apply to probes, except that the limit of connections does not reject probes.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from base.security.api_keys import PROBE_PATHS
from server.http.transport.connection_table import ConnectionTable, raise_file_limit
from server.http.transport.lingering_transport import LingeringTransport
from server.http.transport.read_watch import (
    READ_GRACE_S,
    ReadWatch,
    RejectedError,
    Rejection,
    Stage,
    head_too_large,
    too_many_headers,
)
from server.http.transport.tls_handshake import TlsHandshake
from server.terms.limits import LimitsConfig, flag_of

logger = logging.getLogger(__name__)

_MAX_PIPELINED = 32
"""The most requests that may wait behind a running one on the same connection."""
_UPGRADE_HEADERS = (b"connection", b"upgrade", b"http2-settings")
_TOO_MANY_PIPELINED = Rejection(400, f"More than {_MAX_PIPELINED} requests wait on this connection.")
"""Only the log shows this error, because the connection ends after the responses to the waiting requests.
The client may send the remaining requests on a new connection."""
_MALFORMED = Rejection(400, "The request is not valid HTTP/1.1.")
_ENCODED = Rejection(400, "The request has a Transfer-Encoding other than 'chunked': send the body as it is.")


def bounded_connections(
    limits: LimitsConfig, tls: Callable[[], ssl.SSLContext] | None = None
) -> Callable[..., asyncio.Protocol]:
    """Returns the factory with which uvicorn creates connections. All connections share one table.

    The factory also adds TLS, because uvicorn itself is configured without TLS.
    """
    table = ConnectionTable(raise_file_limit(limits.max_connections))
    if tls is None:
        return partial(BoundedConnection, limits=limits, table=table)

    def start_handshake(*, server_state: ServerState, **kwargs: Any) -> TlsHandshake:
        def create_connection(carrier: asyncio.Transport) -> BoundedConnection:
            return BoundedConnection(limits=limits, table=table, carrier=carrier, server_state=server_state, **kwargs)

        return TlsHandshake(tls(), limits, table, server_state.connections, create_connection)

    return start_handshake


class BoundedConnection(HttpToolsProtocol):
    """Applies the limits to one connection, on the event loop."""

    def __init__(
        self,
        *args: Any,
        limits: LimitsConfig,
        table: ConnectionTable,
        carrier: asyncio.Transport | None = None,
        **kwargs: Any,
    ) -> None:
        """`carrier` is the transport below the connection's TLS. It is None without TLS."""
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._carrier = carrier
        self._table = table
        self._watch = ReadWatch(limits, self.loop, is_reading=self._is_reading, on_timeout=self._handle_timeout)
        self._running: RequestResponseCycle | None = None
        """The request that is being answered."""
        self._num_piece_bytes = 0
        """The size of the piece that the parser is reading, in bytes."""
        self._num_dropped_bytes = 0
        self._num_trailers = 0
        self._has_room = True
        self._ignores_input = False
        """Whether all further input of the client is dropped."""
        self._stall: asyncio.TimerHandle | None = None
        self._transport: LingeringTransport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = LingeringTransport(transport, self._close, self._carrier)
        super().connection_made(self._transport)  # type: ignore[arg-type]
        self._transport.limit_unsent(self._limits.send_buffer_bytes)
        self._has_room = self._table.add(self)
        self._table.check_free_files(transport.get_extra_info("socket").fileno())
        self._watch.expect_first_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport.note_lost()
        self._table.discard(self)
        self._watch.close()
        self._stop_stall()
        self._unset_keepalive_if_required()
        if self._running is not None and not self._running.response_complete:
            # uvicorn marks only the last request as disconnected. This may be an earlier one.
            self._running.disconnected = True
            self._running.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)
        self.cycle = None  # type: ignore[assignment]  # a request that never began must not report its end

    def data_received(self, data: bytes) -> None:
        if self._ignores_input:
            return
        self._unset_keepalive_if_required()
        stage_before = self._watch.stage
        self._num_piece_bytes = len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as err:
            self._parse_without_upgrade(data[err.args[0] :])
        except httptools.HttpParserError as err:
            cause = err.__context__
            self._reject(cause.rejection if isinstance(cause, RejectedError) else _MALFORMED)
        else:
            rejection = self._watch.check_piece(len(data), stage_before)
            if rejection is not None:
                self._reject(rejection)

    def timeout_keep_alive_handler(self) -> None:
        """Waits a little longer, because the next request may have arrived while this process was stopped."""
        self.timeout_keep_alive_task = self.loop.call_later(READ_GRACE_S, super().timeout_keep_alive_handler)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_stall()
        self._stall = self.loop.call_later(self._limits.send_timeout_s, self._recheck_stall)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_stall()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._num_trailers = 0
        self._watch.note_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._watch.stage is Stage.BODY:
            self._num_trailers += 1  # drops trailers, which a proxy in front has not checked
        else:
            super().on_header(name, value)
        if len(self.headers) + self._num_trailers > self._limits.max_headers:
            raise RejectedError(too_many_headers(self._limits))

    def on_headers_complete(self) -> None:
        rejection = self._find_head_error()
        if rejection is not None:
            raise RejectedError(rejection)
        if not self.parser.should_upgrade():
            super().on_headers_complete()
            self._watch.note_body()

    def on_body(self, body: bytes) -> None:
        self._watch.count_body(len(body))
        if self.cycle.response_complete:
            self._drop(len(body))
        else:
            self._avoid_copies(self.cycle)
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()
        if self.pipeline:  # uvicorn pauses reading, so that it might not notice the end of the connection
            self.flow.resume_reading()
        self._watch.note_end()

    def on_response_complete(self) -> None:
        self._running = None
        super().on_response_complete()
        if self._running is None:
            self._table.note_idle(self)

    def shutdown(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self._ignores_input = True
            self._watch.disarm()
            self._transport.finish(self.loop, is_client_sending=False, timeout_s=self._limits.send_timeout_s)
        else:
            self.cycle.keep_alive = False

    def evict(self) -> bool:
        if self._transport.num_unsent_bytes:
            return False
        self._ignores_input = True
        self._watch.disarm()
        self._transport.abort()
        return True

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        self._table.note_busy(self)
        super()._start_asgi_task(cycle, _without_chunks(cycle, app) if cycle.scope["http_version"] == "1.0" else app)

    def _parse_without_upgrade(self, rest: bytes) -> None:
        """Parses the request again without its upgrade headers.

        With these headers, the parser would treat the body as data of another protocol.
        """
        lines = [b"%s %s HTTP/1.1" % (self.parser.get_method(), self.url), b"connection: close"]
        lines += [name + b": " + value for name, value in self.headers if name not in _UPGRADE_HEADERS]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join([*lines, b"", b""]) + rest)

    @staticmethod
    def _avoid_copies(cycle: RequestResponseCycle) -> None:
        """Prepares uvicorn's buffer for the next piece of a body, so that uvicorn copies less.

        uvicorn adds pieces to a bytearray, and passes a copy of the bytearray to the application. If the
        buffer is empty bytes instead, neither of these steps copies.
        """
        if not cycle.body:
            cycle.body = b""  # type: ignore[assignment]
        elif isinstance(cycle.body, bytes):
            cycle.body = bytearray(cycle.body)  # the application has not taken the earlier piece

    def _find_head_error(self) -> Rejection | None:
        """Returns why a request with complete headers must be rejected, or None if it is accepted."""
        if self._watch.may_exceed_head_limit(self._num_piece_bytes):
            num_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if num_bytes > self._limits.max_head_bytes:
                return head_too_large(self._limits)
        for name, value in self.headers:
            if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
                return _ENCODED
        if self.parser.should_upgrade():
            protocol = self._get_upgrade()
            if protocol is None or protocol == b"websocket":
                wanted = "CONNECT" if protocol is None else "an upgrade to websocket"
                return Rejection(400, f"The request asks for {wanted}: this server speaks HTTP/1.1 only.")
        if len(self.pipeline) >= _MAX_PIPELINED:
            return _TOO_MANY_PIPELINED
        if not self._has_room and self.url.partition(b"?")[0].decode("latin-1") not in PROBE_PATHS:
            most, flag = self._table.max_connections, flag_of("max_connections")
            return Rejection(503, f"The server has reached its limit of {most} connections ({flag}).", retry_after_s=1)
        return None

    def _drop(self, num_bytes: int) -> None:
        """Drops body bytes that follow the complete response. If they are many, closes the connection."""
        self._num_dropped_bytes += num_bytes
        if self._num_dropped_bytes > self._limits.max_body_bytes:
            self._close()

    def _reject(self, rejection: Rejection) -> None:
        """Accepts no more input from the client. Sends the reason, unless a response is being sent."""
        logger.debug("closing a connection: %s", rejection.message)
        self._ignores_input = True
        self._watch.disarm()
        is_reading_body = self._watch.stage is Stage.BODY
        cycle = self.cycle
        if is_reading_body and cycle.response_complete:
            self._close()
        elif cycle is None or cycle.response_complete:
            self._send_rejection(rejection)
        elif not is_reading_body:
            cycle.keep_alive = False  # the connection ends after the responses to earlier requests
        elif self.pipeline:
            self.pipeline.popleft()
            last = self.pipeline[0][0] if self.pipeline else self._running
            if last is not None:
                last.keep_alive = False
        elif cycle.response_started:
            cycle.keep_alive = False
        else:
            cycle.disconnected = True
            cycle.message_event.set()
            self._send_rejection(rejection)

    def _send_rejection(self, rejection: Rejection) -> None:
        if not self._transport.is_closing():
            self._transport.write(rejection.encode(self.server_state.default_headers))
            self._close()

    def _close(self) -> None:
        """Replaces the transport's `close`, which uvicorn calls. Sends the unsent bytes, and lingers."""
        if self._transport.is_closed:
            return
        self._watch.disarm()
        is_sending = self._ignores_input or self._watch.stage is not Stage.IDLE
        self._ignores_input = True
        self._transport.finish(self.loop, is_client_sending=is_sending, timeout_s=self._limits.send_timeout_s)

    def _is_reading(self) -> bool:
        return not self.flow.read_paused

    def _handle_timeout(self, rejection: Rejection | None) -> None:
        if rejection is None:
            self._close()
        else:
            self._reject(rejection)

    def _recheck_stall(self) -> None:
        """Waits a little longer, because the client may have read while this process was stopped."""
        self._stall = self.loop.call_later(READ_GRACE_S, self._abort_stalled)

    def _abort_stalled(self) -> None:
        limit, flag = self._limits.send_timeout_s, flag_of("send_timeout_s")
        logger.info("a client has read nothing for %g s (%s): cancelling its request", limit, flag)
        self._ignores_input = True
        self._transport.abort()

    def _stop_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None


def _without_chunks(cycle: RequestResponseCycle, app: ASGI3Application) -> ASGI3Application:
    """Wraps the application for HTTP/1.0, which has no chunks. A stream ends with the connection."""
    cycle.chunked_encoding = False

    async def run(scope: Any, receive: Any, send: Any) -> None:
        async def send_plainly(message: Any) -> None:
            cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_plainly)

    return run
