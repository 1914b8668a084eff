"""One HTTP/1.1 connection: uvicorn's, with bounds on what a client sends, how fast, and how fast it reads.

Probes are bounded like everything else that comes over the wire, but never refused for want of room.
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

from server.limits import LimitsConfig, flag_of
from server.routes.health import PROBE_PATHS
from server.transport.connection_table import ConnectionTable, raise_file_limit
from server.transport.lingering_transport import LingeringTransport
from server.transport.read_watch import LAST_LOOK_S, ReadWatch, Stage, head_too_large
from server.transport.refusal import Refusal, RefusedError
from server.transport.tls_handshake import TlsHandshake

logger = logging.getLogger(__name__)

_MAX_PIPELINED = 32
"""Requests that wait behind one on the same connection."""
_UPGRADE_HEADERS = (b"connection", b"upgrade", b"http2-settings")
_MALFORMED = Refusal(400, "The request is not valid HTTP/1.1.")
_ENCODED = Refusal(400, "The request has a Transfer-Encoding other than 'chunked': send the body as it is.")


def bounded_connections(
    limits: LimitsConfig, tls: Callable[[], ssl.SSLContext] | None = None
) -> Callable[..., asyncio.Protocol]:
    """What uvicorn makes connections with; they share one table. TLS is done here, uvicorn is to know nothing of it."""
    table = ConnectionTable(raise_file_limit(limits.max_connections))
    if tls is None:
        return partial(BoundedConnection, limits=limits, table=table)

    def shake_hands(*, server_state: ServerState, **kwargs: Any) -> TlsHandshake:
        def create_connection(carrier: asyncio.Transport) -> BoundedConnection:
            return BoundedConnection(limits=limits, table=table, carrier=carrier, server_state=server_state, **kwargs)

        return TlsHandshake(tls(), limits, table, server_state.connections, create_connection)

    return shake_hands


class BoundedConnection(HttpToolsProtocol):
    """Lives on the event loop."""

    def __init__(
        self,
        *args: Any,
        limits: LimitsConfig,
        table: ConnectionTable,
        carrier: asyncio.Transport | None = None,
        **kwargs: Any,
    ) -> None:
        """`carrier` is what the connection's TLS is carried by, if it has any."""
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._carrier = carrier
        self._table = table
        self._watch = ReadWatch(limits, self.loop, is_reading=self._is_reading, on_late=self._end_late)
        self._running: RequestResponseCycle | None = None
        """What is being answered."""
        self._num_pending_bytes = 0
        """Of the piece that the parser is reading."""
        self._num_dropped_bytes = 0
        self._num_trailers = 0
        self._has_room = True
        self._is_deaf = False
        """Whatever else the client sends is dropped."""
        self._stall: asyncio.TimerHandle | None = None
        self._gentle: LingeringTransport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._gentle = LingeringTransport(transport, self._close, self._carrier)
        super().connection_made(self._gentle)  # type: ignore[arg-type]
        self._gentle.limit_unsent(self._limits.send_buffer_bytes)
        self._has_room = self._table.add(self)
        self._table.note_file(transport.get_extra_info("socket").fileno())
        self._watch.expect_first()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gentle.note_lost()
        self._table.discard(self)
        self._watch.close()
        self._stop_stall()
        self._unset_keepalive_if_required()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True  # uvicorn tells the last request alone, and this may be an earlier one
            self._running.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)
        self.cycle = None  # type: ignore[assignment]  # it may never have begun, and still mean to tell of its end

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        self._unset_keepalive_if_required()
        stage_before = self._watch.stage
        self._num_pending_bytes = len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as err:
            self._go_on_without_upgrade(data[err.args[0] :])
        except httptools.HttpParserError as err:
            cause = err.__context__
            self._refuse(cause.refusal if isinstance(cause, RefusedError) else _MALFORMED)
        else:
            refusal = self._watch.after(len(data), stage_before)
            if refusal is not None:
                self._refuse(refusal)

    def timeout_keep_alive_handler(self) -> None:
        """The next request may have come while this process was stopped."""
        self.timeout_keep_alive_task = self.loop.call_later(LAST_LOOK_S, super().timeout_keep_alive_handler)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_stall()
        self._stall = self.loop.call_later(self._limits.send_timeout_s, self._look_at_stall)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_stall()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._num_trailers = 0
        self._watch.note_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._watch.stage is Stage.BODY:
            self._num_trailers += 1  # nobody sees them: a proxy in front has not looked at them, either
        else:
            super().on_header(name, value)
        if len(self.headers) + self._num_trailers > self._limits.max_headers:
            most, flag = self._limits.max_headers, flag_of("max_headers")
            raise RefusedError(Refusal(431, f"The request has more than {most} headers ({flag})."))

    def on_headers_complete(self) -> None:
        refusal = self._find_fault()
        if refusal is not None:
            raise RefusedError(refusal)
        if not self.parser.should_upgrade():
            super().on_headers_complete()
            self._watch.note_body()

    def on_body(self, body: bytes) -> None:
        self._watch.count_body(len(body))
        if self.cycle.response_complete:
            self._drop(len(body))
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()
        self._watch.note_end()

    def on_response_complete(self) -> None:
        self._running = None
        super().on_response_complete()
        if self._running is None:
            self._table.note_idle(self)

    def shutdown(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self._is_deaf = True
            self._watch.disarm()
            self._gentle.finish(self.loop, is_client_sending=False, timeout_s=self._limits.send_timeout_s)
        else:
            self.cycle.keep_alive = False

    def evict(self) -> bool:
        """Makes room: nothing is being answered here, and a client that was refused has had its time to read it."""
        if self._gentle.num_unsent_bytes:
            return False
        self._is_deaf = True
        self._watch.disarm()
        self._gentle.abort()
        return True

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        self._table.note_busy(self)
        super()._start_asgi_task(cycle, app)

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """The parser takes the body for another protocol's: it gets the request once more, without the offer."""
        lines = [b"%s %s HTTP/1.1" % (self.parser.get_method(), self.url), b"connection: close"]
        lines += [name + b": " + value for name, value in self.headers if name not in _UPGRADE_HEADERS]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join([*lines, b"", b""]) + rest)

    def _find_fault(self) -> Refusal | None:
        """What is wrong with the request whose headers are complete."""
        if self._watch.is_large_head(self._num_pending_bytes):
            num_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if num_bytes > self._limits.max_head_bytes:
                return head_too_large(self._limits.max_head_bytes)
        for name, value in self.headers:
            if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
                return _ENCODED
        if self.parser.should_upgrade():
            protocol = self._get_upgrade()
            if protocol is None or protocol == b"websocket":
                wanted = "CONNECT" if protocol is None else "an upgrade to websocket"
                return Refusal(400, f"The request asks for {wanted}: this server speaks HTTP/1.1 only.")
        if len(self.pipeline) >= _MAX_PIPELINED:
            return Refusal(503, f"More than {_MAX_PIPELINED} requests wait on this connection.", retry_after_s=1)
        if not self._has_room and self.url.partition(b"?")[0].decode("latin-1") not in PROBE_PATHS:
            most, flag = self._table.most, flag_of("max_connections")
            return Refusal(503, f"The server has {most} connections, and no more ({flag}).", retry_after_s=1)
        return None

    def _drop(self, num_bytes: int) -> None:
        """The rest of a body that has been answered already: up to a point it is easier to let it come."""
        self._num_dropped_bytes += num_bytes
        if self._num_dropped_bytes > self._limits.max_body_bytes:
            self._close()

    def _refuse(self, refusal: Refusal) -> None:
        """Takes nothing more of this connection; tells why, unless an answer is in the way."""
        logger.debug("a connection is closed: %s", refusal.message)
        self._is_deaf = True
        self._watch.disarm()
        is_reading_body = self._watch.stage is Stage.BODY
        cycle = self.cycle
        if is_reading_body and cycle.response_complete:
            self._close()
        elif cycle is None or cycle.response_complete:
            self._say(refusal)
        elif not is_reading_body:
            cycle.keep_alive = False  # the requests before the bad one are answered, then it ends
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
            self._say(refusal)

    def _say(self, refusal: Refusal) -> None:
        if not self._gentle.is_closing():
            self._gentle.write(refusal.encode(self.server_state.default_headers))
            self._close()

    def _close(self) -> None:
        """Takes the place of the transport's `close` in uvicorn."""
        if self._gentle.is_closed:
            return
        self._watch.disarm()
        is_sending = self._is_deaf or self._watch.stage is not Stage.IDLE
        self._is_deaf = True
        self._gentle.finish(self.loop, is_client_sending=is_sending, timeout_s=self._limits.send_timeout_s)

    def _is_reading(self) -> bool:
        return not self.flow.read_paused

    def _end_late(self, refusal: Refusal | None) -> None:
        if refusal is None:
            self._close()
        else:
            self._refuse(refusal)

    def _look_at_stall(self) -> None:
        """The client may have read while this process was stopped."""
        self._stall = self.loop.call_later(LAST_LOOK_S, self._cut)

    def _cut(self) -> None:
        limit, flag = self._limits.send_timeout_s, flag_of("send_timeout_s")
        logger.info("a client has read nothing for %g s (%s): its request is cancelled", limit, flag)
        self._is_deaf = True
        self._gentle.abort()

    def _stop_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
