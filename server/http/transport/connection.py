"""An HTTP/1.1 connection, with limits for the size and speed of requests and responses.

The same limits apply to probes, except that the limit of connections does not reject probes.
"""

import asyncio
import logging
import socket
import ssl
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import dataclass, field
from math import inf
from typing import Any

import httptools

from base.access_log import ACCESS_LINE
from base.http_requests import encode
from base.security.api_keys import PROBE_PATHS
from server.http.transport.connection_table import ConnectionTable, raise_file_limit
from server.http.transport.http_request import RawHeaders, Request, announces_body, date_header, find_header
from server.http.transport.input_turns import (
    BODY_COST,
    HEAD_COST,
    InputTurns,
    end_of_body_slice,
    end_of_head_slice,
    is_one_slice,
)
from server.http.transport.read_watch import (
    ReadWatch,
    RejectedError,
    Rejection,
    Stage,
    Timer,
    head_too_large,
    too_many_headers,
)
from server.terms.held_bytes import HeldBytes
from server.terms.limits import LimitsConfig, flag_of

logger = logging.getLogger(__name__)

_MOST_WAITING_BYTES = 65_536
"""The most bytes of a body that wait to be read, before the connection stops reading from the client."""
_MOST_BACKLOG_BYTES = 16_384
"""The most bytes that wait to be parsed, before the connection stops reading from the client."""
_MOST_BEHIND_BYTES = 4096
"""The most bytes behind a running request, before the connection stops reading from the client."""
_WORTH_READING_BYTES = 16_384
"""The bytes of a body for which the handler is woken before all input is parsed."""
_MOST_INPUT_BYTES, _MOST_BODY_INPUT_BYTES = 65_536, 262_144
"""The most bytes that are read from a client at once. The second number is for the rest of a body."""
_LINGER_S = 5.0
"""How many seconds a connection stays open while the client still sends, or has not ended TLS."""
_SLICES_AT_ONCE = 4
"""The most slices of new input that are parsed at once: of a small request, its head and its body."""
_UPGRADE_HEADERS = (b"upgrade", b"http2-settings")
_MALFORMED = Rejection(400, "The request is not valid HTTP/1.1.")
_ENCODED = Rejection(400, "The request has a Transfer-Encoding other than 'chunked': send the body as it is.")


@dataclass(kw_only=True, eq=False)
class Serving:
    """The settings and the state that all connections of a server share."""

    handle: Callable[[Request], Awaitable[None]]
    """Answers a request."""
    limits: LimitsConfig
    held: HeldBytes
    """What all requests hold. Connections add the requests that wait behind a running one."""
    tls: Callable[[], ssl.SSLContext] | None = None
    """Returns the context of a new connection. None: without TLS."""
    keep_alive_s: float = 5.0
    """Seconds after which a connection without a request closes."""
    delivery_s: float = inf
    """The longest time that running requests have when the server ends."""
    access_log: logging.Logger | None = None
    takes_websockets: bool = False
    """Whether `handle` gets requests for a WebSocket."""
    is_ending: bool = False
    """Whether each further response closes its connection."""
    connections: set[Any] = field(default_factory=set)
    """All connections, also those whose TLS handshake is not complete."""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    turns: InputTurns = field(default_factory=InputTurns)
    input_buffer: bytearray = field(default_factory=lambda: bytearray(_MOST_BODY_INPUT_BYTES), repr=False)
    """The input of the connection that is read at the moment."""

    def __post_init__(self) -> None:
        self.input_view = memoryview(self.input_buffer)
        self.short_input_view = self.input_view[:_MOST_INPUT_BYTES]
        self.table = ConnectionTable(raise_file_limit(self.limits.max_connections))


class Connection(asyncio.BufferedProtocol):
    """Reads the requests of one client, and sends the responses in their order. Runs on the event loop."""

    def __init__(self, serving: Serving, carrier: asyncio.Transport | None = None) -> None:
        """`carrier` is the transport below the connection's TLS. It is None without TLS."""
        self._serving = serving
        self._limits = serving.limits
        self._carrier = carrier
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._parser: httptools.HttpRequestParser
        self._watch = ReadWatch(
            self._limits, self._loop, is_reading=lambda: not (self._is_paused or self._backlog), on_timeout=self._reject
        )
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.has_begun = False
        self._url = b""
        self._headers: RawHeaders = []
        self._newest: Request | None = None  # the last request whose head has arrived
        self._running: Request | None = None
        self._backlog = bytearray()  # input that waits to be parsed
        self._is_queued = False  # whether `_parse_next` is going to be called
        self._has_read_much = False  # whether reading pauses until the loop's next turn
        self._num_counted_bytes = 0  # what this connection has added to the server's held bytes
        self._body_parts: list[bytes] = []  # of the slice that the parser reads
        self._num_body_bytes_left: int | None = None  # of the newest request. None for a chunked body
        self._upgraded: Request | None = None  # which all further input belongs to
        self._waiting: deque[Request] = deque()
        self._num_slice_bytes = 0
        self._num_dropped_bytes = self._num_trailers = 0
        self._has_room, self._is_paused = True, False
        self._ignores_input = False  # whether all further input of the client is dropped
        self._is_closed = False  # whether nothing more is sent
        self._idle, self._stall, self._lingering = (Timer(self._loop) for _ in range(3))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._parser = self._create_parser()
        carriers = (transport,) if self._carrier is None else (transport, self._carrier)
        for carrier in carriers:  # while more bytes are unsent, the connection's request is paused
            carrier.set_write_buffer_limits(high=self._limits.send_buffer_bytes // len(carriers))
        self._serving.connections.add(self)
        self._has_room = self._serving.table.add(self)
        self._serving.table.check_free_files(transport.get_extra_info("socket").fileno())
        self._watch.expect_first_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closed = self._ignores_input = True
        self._newest = self._upgraded = None
        del self._parser  # it refers to this object
        if self._carrier is not None:  # uvloop's TLS keeps the methods of its last protocol
            self._transport.set_protocol(asyncio.BufferedProtocol())
        self._serving.connections.discard(self)
        self._serving.table.discard(self)
        self._watch.close()
        self._idle.stop()
        self._stall.stop()
        self._lingering.stop()
        self._drop_waiting()
        if self._running is not None:
            self._running.disconnect()
            self._running = None
        self.may_write.set()

    def get_buffer(self, sizehint: int) -> memoryview:
        num_left = self._num_body_bytes_left
        if num_left is not None and num_left > _MOST_INPUT_BYTES:
            return self._serving.input_view
        return self._serving.short_input_view

    def buffer_updated(self, nbytes: int) -> None:
        if self._ignores_input:
            return
        serving = self._serving
        if self._upgraded is not None:
            self._upgraded.add_part(bytes(serving.input_view[:nbytes]))
        elif not (self._backlog or self._waiting or self._is_paused) and is_one_slice(
            serving.input_buffer, nbytes, self._num_body_bytes_left
        ):
            self._parse(serving.input_view[:nbytes])
            if not (self._watch.stage is Stage.BODY or self._waiting or self._backlog):
                return
        else:
            self._parse_new(nbytes)
            self._has_read_much = nbytes >= _MOST_INPUT_BYTES
        self.go_on()

    def pause_writing(self) -> None:
        self.may_write.clear()
        self._stall.start(self._limits.send_timeout_s, self._abort_stalled)

    def resume_writing(self) -> None:
        self.may_write.set()
        self._stall.stop()

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = []
        self._num_trailers = 0
        self._watch.note_head()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._watch.stage is Stage.BODY:
            self._num_trailers += 1  # drops trailers, which a proxy in front has not checked
        else:
            self._headers.append((name.lower(), value))
        if len(self._headers) + self._num_trailers > self._limits.max_headers:
            raise RejectedError(too_many_headers(self._limits))

    def on_headers_complete(self) -> None:
        if (rejection := self._find_head_error()) is not None:
            raise RejectedError(rejection)
        parser = self._parser
        if (is_upgrade := parser.should_upgrade()) and not self._is_for_websocket:
            return
        method, version = parser.get_method().decode("ascii"), parser.get_http_version()
        self._newest = request = Request(self, method, self._url, self._headers, version)
        request.keep_alive &= parser.should_keep_alive() and not is_upgrade
        self.has_begun = True
        if is_upgrade:
            self._upgraded, request.is_websocket = request, True
        else:
            self._watch.note_body()
        if self._running is None:
            self._start(request)
        else:
            self._waiting.append(request)

    def on_message_complete(self) -> None:
        if self._body_parts:
            self._take_body()
        request = self._newest
        if request is not None and self._watch.stage is Stage.BODY:
            request.end_body()
            if self._num_trailers and not self._parser.should_keep_alive():  # the parser reads nothing more
                request.keep_alive = False
                if request.is_answered:
                    self._close()
        self._num_body_bytes_left = None
        self._watch.note_end()

    @property
    def is_ending(self) -> bool:
        return self._serving.is_ending

    def log_response(self, request: Request) -> None:
        access_log = self._serving.access_log
        if access_log is not None and access_log.isEnabledFor(logging.INFO):
            peer = self._transport.get_extra_info("peername")
            client = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else ""
            path = encode(request.path) + (f"?{request.query}" if request.query else "")
            access_log.info(ACCESS_LINE, client, request.method, path, request.version, request.status)

    def write(self, data: bytes) -> None:
        if not self._is_closed:
            self._transport.write(data)

    def end_response(self, request: Request) -> None:
        if request is not self._running:
            return
        self._running = None
        if request.num_unread_bytes:
            request.drop_body()
        if not request.keep_alive:
            self._drop_waiting()
            self._close()
        elif not self._is_closed:
            if self._waiting:
                self._start(self._waiting.popleft())
                self._direct_input()
                return
            self._idle.start(self._serving.keep_alive_s, self._close)
            if self._backlog or self._is_paused or self._num_counted_bytes:
                self.go_on()
        self._serving.table.note_idle(self)

    def abort(self) -> None:
        self._ignores_input = True
        self._transport.abort()

    def go_on(self) -> None:
        """Called when input has arrived, when it may be parsed or read, and when the handler has read it."""
        if self._ignores_input:
            return
        request = self._upgraded or self._newest
        num_unread = 0 if request is None else request.num_unread_bytes
        if self._backlog or self._waiting or self._is_paused or self._has_read_much or num_unread > _MOST_WAITING_BYTES:
            self._direct_input()
        if request is not None and num_unread and (not self._is_queued or num_unread >= _WORTH_READING_BYTES):
            request.wake()

    def end_soon(self) -> None:
        """Ends the connection after the last request that has arrived, or now if there is none."""
        if self._running is not None:
            (self._waiting[-1] if self._waiting else self._running).keep_alive = False
            return
        self._ignores_input = True
        self._finish(is_client_sending=False)

    def evict(self) -> bool:
        """Closes this connection without a running request. Returns False if bytes are unsent or unparsed."""
        if self._num_unsent_bytes or self._backlog:
            return False
        self.abort()
        return True

    def _create_parser(self) -> httptools.HttpRequestParser:
        self.on_body = self._body_parts.append  # a method in Python would take most of the time of a small chunk
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # such data must not prevent the response
        return parser

    def _start(self, request: Request) -> None:
        self._running = request
        self._serving.table.note_busy(self)
        task = self._loop.create_task(self._answer(request), context=Context())
        self._serving.tasks.add(task)
        task.add_done_callback(self._serving.tasks.discard)

    async def _answer(self, request: Request) -> None:
        try:
            await self._serving.handle(request)
        except Exception:
            logger.exception("a request failed unexpectedly")
        finally:
            if request is self._running:  # no response, or a part of one
                self._running = None
                if request.version == "1.0" and request.status is not None:
                    self._reset()
                else:
                    self._close()

    def _reset(self) -> None:
        """Resets the connection, because a usual end would look like the end of the response."""
        client = self._transport.get_extra_info("socket")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.abort()

    @property
    def _is_blocked(self) -> bool:
        """Whether input waits for the handlers: for the end of a request, or for reading a body."""
        return (bool(self._waiting) and self._watch.stage is not Stage.BODY) or self._is_body_unread

    @property
    def _is_body_unread(self) -> bool:
        reading = self._upgraded
        if reading is None and self._watch.stage is Stage.BODY:
            reading = self._newest
        return reading is not None and not reading.is_answered and reading.num_unread_bytes > _MOST_WAITING_BYTES

    def _end_of_slice(self, data: bytearray, begin: int, end: int) -> int:
        if self._watch.stage is Stage.BODY:
            return end_of_body_slice(data, begin, end, self._num_body_bytes_left)
        return end_of_head_slice(data, begin, end)

    def _parse_new(self, num_bytes: int) -> None:
        """Parses the first slices of new input. The rest waits."""
        data, view, begin = self._serving.input_buffer, self._serving.input_view, 0
        for _ in range(_SLICES_AT_ONCE):
            if self._backlog or self._is_blocked or self._upgraded is not None:
                break
            end = self._end_of_slice(data, begin, num_bytes)
            self._parse(view[begin:end])
            begin = end
            if self._ignores_input or begin == num_bytes:
                return
        if self._upgraded is None:
            self._backlog += view[begin:num_bytes]
        else:
            self._upgraded.add_part(bytes(view[begin:num_bytes]))

    def _parse_next(self) -> int:
        """Parses a slice of the backlog. Called by the server's `InputTurns`. Returns the cost."""
        self._is_queued = self._has_read_much = False
        if self._ignores_input:
            return 0
        cost = BODY_COST if self._watch.stage is Stage.BODY else HEAD_COST
        if self._backlog and not self._is_blocked:
            end = self._end_of_slice(self._backlog, 0, len(self._backlog))
            with memoryview(self._backlog) as view:
                data = bytes(view[:end])
            del self._backlog[:end]
            self._parse(data)
        self.go_on()
        return cost

    def _parse(self, data: bytes | memoryview) -> None:
        """Parses a slice of input."""
        self._idle.stop()
        stage_before = self._watch.stage
        self._num_slice_bytes = len(data)
        try:
            self._parser.feed_data(data)
            if self._body_parts:
                self._take_body()
        except httptools.HttpParserUpgrade as err:
            self._take_upgrade(bytes(data[err.args[0] :]))
        except httptools.HttpParserError as err:
            cause = err.__context__
            self._reject(cause.args[0] if isinstance(cause, RejectedError) else _MALFORMED)
        else:
            rejection = self._watch.check_piece(len(data), stage_before)
            if rejection is not None:
                self._reject(rejection)

    def _take_body(self) -> None:
        """Passes on what the parser has found of the newest request's body. A chunk may be a single byte."""
        body = self._body_parts[0] if len(self._body_parts) == 1 else b"".join(self._body_parts)
        self._body_parts.clear()
        request = self._newest
        assert request is not None
        self._watch.count_body(len(body))
        if self._num_body_bytes_left is not None:
            self._num_body_bytes_left -= len(body)
        if not request.is_answered:
            request.add_part(body)
            return
        self._num_dropped_bytes += len(body)
        if self._num_dropped_bytes > self._limits.max_body_bytes:
            self._close()

    def _direct_input(self) -> None:
        """Lets the backlog be parsed. Reads from the client as long as little input waits.

        With small requests behind the running one, the connection is still read, because otherwise its end
        would not be noticed.
        """
        self._count_waiting()
        is_more = self._has_read_much or (self._backlog and not self._is_blocked)
        if is_more and not self._is_queued:
            self._is_queued = True
            self._serving.turns.add(self._parse_next)
        most = _MOST_BEHIND_BYTES if self._waiting else _MOST_BACKLOG_BYTES
        is_much = self._has_read_much or self._num_behind_bytes > most
        if is_much or self._is_body_unread:
            if not self._is_paused:
                self._is_paused = True
                self._transport.pause_reading()
        elif not self._backlog or self._is_blocked:
            self._resume_reading()

    def _resume_reading(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()

    def _count_waiting(self) -> None:
        """Counts the input behind the running request, which no handler has admitted yet.

        If such input exceeds the limit of the server, this connection ends after the running request.
        """
        if not self._waiting and not self._num_counted_bytes:
            return
        num_bytes = self._num_behind_bytes if self._waiting else 0
        held = self._serving.held
        held.count_waiting(num_bytes - self._num_counted_bytes)
        self._num_counted_bytes = num_bytes
        if held.is_waiting_full(num_bytes) and self._running is not None:
            logger.info("requests behind a running one are dropped (%s)", flag_of("max_held_bytes"))
            self._running.keep_alive = False
            self._ignores_input = True
            self._drop_waiting()
            self._resume_reading()

    @property
    def _num_behind_bytes(self) -> int:
        """The bytes that wait to be parsed, or that belong to requests behind the running one."""
        return len(self._backlog) + sum(request.num_unread_bytes for request in self._waiting)

    def _drop_waiting(self) -> None:
        """Drops the input that has not reached a handler."""
        self._waiting.clear()
        self._backlog = bytearray()
        self._serving.held.count_waiting(-self._num_counted_bytes)
        self._num_counted_bytes = 0

    @property
    def _is_for_websocket(self) -> bool:
        is_get = self._parser.get_method() == b"GET" and self._parser.get_http_version() == "1.1"
        return is_get and self._serving.takes_websockets and self._names_websocket

    @property
    def _names_websocket(self) -> bool:
        return (find_header(self._headers, b"upgrade") or "").lower() == "websocket"

    def _take_upgrade(self, rest: bytes) -> None:
        """Takes the input behind the head of a request with an Upgrade."""
        if self._upgraded is not None:
            self._watch.disarm()
            self._upgraded.add_part(rest + bytes(self._backlog))
            self._backlog.clear()
            return
        self._backlog[:0] = rest
        self._parse_without_upgrade()

    def _parse_without_upgrade(self) -> None:
        """Parses a head again without its upgrade, which makes the body another protocol's."""
        version = self._parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self._parser.get_method(), self._url, version), b"connection: close"]
        for name, value in self._headers:
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                value = b", ".join(option for option in options if option.lower() not in _UPGRADE_HEADERS)
            if name not in _UPGRADE_HEADERS:
                lines.append(b"%b: %b" % (name, value))
        self._parser = self._create_parser()
        self._parse(b"\r\n".join([*lines, b"", b""]))

    def _find_head_error(self) -> Rejection | None:
        """Returns why a request with complete headers must be rejected, or None if it is accepted."""
        if self._watch.may_exceed_head_limit(self._num_slice_bytes):
            num_bytes = len(self._url) + sum(len(name) + len(value) for name, value in self._headers)
            if num_bytes > self._limits.max_head_bytes:
                return head_too_large(self._limits)
        for name, value in self._headers:
            if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
                return _ENCODED
            if name == b"content-length":
                self._num_body_bytes_left = int(value)
        if self._parser.should_upgrade():
            is_connect = self._parser.get_method() == b"CONNECT"
            if is_connect or (self._names_websocket and not self._serving.takes_websockets):
                wanted = "CONNECT" if is_connect else "an upgrade to websocket"
                return Rejection(400, f"The request asks for {wanted}: this server speaks HTTP/1.1 only.")
            if self._is_for_websocket and announces_body(self._headers):
                return Rejection(400, "The request has a body and an Upgrade: send it without one.")
        if not self._has_room and self._url.partition(b"?")[0].decode("latin-1") not in PROBE_PATHS:
            most, flag = self._serving.table.max_connections, flag_of("max_connections")
            return Rejection(503, f"The server has reached its limit of {most} connections ({flag}).", retry_after_s=1)
        return None

    def _reject(self, rejection: Rejection | None) -> None:
        """Accepts no more input from the client. Sends the reason, unless a response is being sent."""
        if rejection is None:  # nothing has arrived
            self._close()
            return
        self._ignores_input = True
        self._watch.disarm()
        newest, is_reading_body = self._newest, self._watch.stage is Stage.BODY
        if newest is not None and not newest.is_answered:
            if not is_reading_body or newest.status is not None:
                newest.keep_alive = False  # the connection ends after the responses to earlier requests
                return
            if self._waiting:
                self._waiting.pop()
                self.end_soon()
                return
            self._running = None
            newest.disconnect()
        if newest is None or not is_reading_body or not newest.is_answered:
            logger.debug("closing a connection: %s", rejection.message)
            self.write(rejection.encode(date_header()))
        self._close()

    def _close(self) -> None:
        """Sends the unsent bytes, then closes."""
        if self._is_closed:
            return
        is_sending = self._ignores_input or self._backlog or self._watch.stage is not Stage.IDLE
        self._ignores_input = True
        self._finish(is_client_sending=bool(is_sending))

    def _finish(self, *, is_client_sending: bool) -> None:
        """Sends the unsent bytes, then closes. Takes at most `send_timeout_s`, even if nobody reads.

        Closing while the client still sends would reset the connection, and the response would be lost. So
        the connection lingers until the client stops sending, or with TLS until the client ends the TLS
        session. Input is read and dropped meanwhile.
        """
        self._is_closed = True
        self._backlog.clear()
        self._watch.disarm()
        transport, timeout_s = self._transport, self._limits.send_timeout_s
        if transport.is_closing():
            return
        if is_client_sending and transport.can_write_eof():
            transport.write_eof()
            self._resume_reading()
        else:
            transport.close()
            if self._carrier is None and not transport.get_write_buffer_size():
                return
        self._lingering.start(min(_LINGER_S, timeout_s), self._end_lingering)

    def _end_lingering(self) -> None:
        left_s = self._limits.send_timeout_s - _LINGER_S
        if self._num_unsent_bytes and left_s > 0:
            self._lingering.start(left_s, self._transport.abort)
        else:
            self._transport.abort()

    @property
    def _num_unsent_bytes(self) -> int:
        """The number of bytes that the kernel has not yet accepted for sending."""
        carried = 0 if self._carrier is None else self._carrier.get_write_buffer_size()
        return self._transport.get_write_buffer_size() + carried

    def _abort_stalled(self) -> None:
        limit, flag = self._limits.send_timeout_s, flag_of("send_timeout_s")
        logger.info("a client has read nothing for %g s (%s): cancelling its request", limit, flag)
        self.abort()
