"""The connections of clients: aiohttp's connections with the limits of the embedded engine's server."""

import asyncio
import resource
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from aiohttp import EMPTY_PAYLOAD, StreamReader, hdrs, web
from aiohttp.http import HttpVersion, HttpVersion10, HttpVersion11, RawRequestMessage
from aiohttp.http_exceptions import LineTooLong

from router.http.answers import SERVER, FailedRequestError, error_answer
from router.metrics import RequestRecord
from server.http.transport.connection_table import ConnectionTable
from server.http.transport.read_watch import ReadWatch, Rejection, Stage, Timer, head_too_large, too_many_headers
from server.http.transport.tls_handshake import TlsHandshake
from server.terms.limits import LimitsConfig

_LINGER_S: Final = 1.0
"""Seconds in which the router still reads from a rejected client, so that the client can read the error."""
_READ_BYTES: Final = 64 << 10
_TOO_MANY_HEADERS: Final = "Too many headers received"
"""The text of aiohttp's error for too many headers. Nothing else identifies this error."""
_MALFORMED: Final = "The request is not valid HTTP/1.1."

_SINGLE: Final = (hdrs.HOST, hdrs.CONTENT_TYPE, hdrs.TRANSFER_ENCODING)
"""Headers that may occur only once, although aiohttp 3.13 accepts them twice."""

CompleteHeaders = Callable[["ClientRequest", web.StreamResponse], None]


class ClientServer(web.Server):
    """Creates and counts the connections. A connection counts from the moment at which it is accepted."""

    def __init__(
        self,
        handle: "Callable[[ClientRequest], Awaitable[web.StreamResponse]]",
        complete_headers: CompleteHeaders,
        limits: LimitsConfig,
        tls_context: Callable[[], ssl.SSLContext] | None,
        **kwargs: Any,
    ) -> None:
        """`complete_headers` is called before the head of a response is sent. `kwargs` go to aiohttp."""
        super().__init__(
            handle,  # type: ignore[arg-type]
            request_factory=self._create_request,
            handler_cancellation=True,
            auto_decompress=False,
            max_line_size=limits.max_head_bytes,
            max_field_size=limits.max_head_bytes,
            max_headers=limits.max_headers,
            read_bufsize=_READ_BYTES,
            **kwargs,
        )
        self.complete_headers = complete_headers
        self.limits = limits
        self._tls_context = tls_context
        self._handshakes: set[TlsHandshake] = set()
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        half = limits.max_connections if files == resource.RLIM_INFINITY else max(1, files // 2)
        self.table = ConnectionTable(min(limits.max_connections, half))
        """Clients get at most half of the file descriptors. Models' servers and starts need the rest."""

    def __call__(self) -> Any:
        if self._tls_context is None:
            return self._create_connection()
        create = lambda _: self._create_connection()  # noqa: E731
        return TlsHandshake(self._tls_context(), self.limits, self.table, self._handshakes, create)

    def pre_shutdown(self) -> None:
        for handshake in list(self._handshakes):
            handshake.end_soon()
        super().pre_shutdown()

    def _create_connection(self) -> "Connection":
        return Connection(self, loop=self._loop, **self._kwargs)

    def _create_request(
        self, message: RawRequestMessage, payload: Any, protocol: Any, writer: Any, task: Any
    ) -> "ClientRequest":
        return ClientRequest(message, payload, protocol, writer, task, self._loop)


class ClientRequest(web.Request):
    """A request whose head has been read."""

    ATTRS = web.Request.ATTRS | {"record"}

    protocol: "Connection"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.record = RequestRecord()

    @property
    def version(self) -> HttpVersion:
        """The HTTP version that the response has."""
        return HttpVersion10 if self._version == HttpVersion10 else HttpVersion11

    def check_head(self) -> None:
        """Raises FailedRequestError if the head has a fault that aiohttp's parser accepts."""
        limits = self.protocol.server.limits
        length = len(self.raw_path) + sum(len(name) + len(value) for name, value in self.raw_headers)
        if length > limits.max_head_bytes:
            raise _failed(head_too_large(limits))
        if len(self.raw_headers) > limits.max_headers:
            raise _failed(too_many_headers(limits))
        is_old_and_chunked = self._version == HttpVersion10 and self._message.chunked
        is_doubled = any(len(self.headers.getall(name, ())) > 1 for name in _SINGLE)
        has_no_host = self._version == HttpVersion11 and hdrs.HOST not in self.headers
        if is_old_and_chunked or is_doubled or has_no_host or self._version not in (HttpVersion10, HttpVersion11):
            raise FailedRequestError(400, _MALFORMED, closes=True)
        if self.headers.get(hdrs.TRANSFER_ENCODING, "chunked").strip().lower() != "chunked":
            raise FailedRequestError(501, "Only chunked is supported as Transfer-Encoding.", closes=True)
        if self._has_body_before_upgrade:
            self.protocol.drop_rest()
            raise FailedRequestError(400, "The request has a body and an Upgrade: send it without one.", closes=True)
        if self.method == hdrs.METH_CONNECT:
            text = "The request asks for CONNECT: this server speaks HTTP/1.1 only."
            raise FailedRequestError(400, text, closes=True)

    @property
    def _has_body_before_upgrade(self) -> bool:
        """Whether the request has a body and an Upgrade. aiohttp 3.13 takes this body for upgraded data."""
        has_body = self._message.chunked or self.headers.get(hdrs.CONTENT_LENGTH, "0").strip("0")
        is_websocket = self.headers.get(hdrs.UPGRADE, "").lower() == "websocket"
        return bool(has_body and is_websocket and self._message.upgrade)

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        self.protocol.server.complete_headers(self, response)


class Connection(web.RequestHandler):
    """The connection of one client."""

    def __init__(self, server: ClientServer, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self.server = server
        self.has_room = True
        """Whether the limit of connections allows this connection."""
        self._client: asyncio.Transport
        self._payload: StreamReader = EMPTY_PAYLOAD
        """The body of the last request on this connection."""
        self._is_refused = False
        self._is_upgraded = False
        """Whether the connection has been upgraded to WebSocket or another protocol."""
        limits, loop = server.limits, asyncio.get_running_loop()
        self._watch = ReadWatch(limits, loop, is_reading=lambda: True, on_timeout=self._time_out)
        """Limits the time for a request's head. The time for a body is limited where the body is read."""
        self._stall = Timer(loop)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._client = cast("asyncio.Transport", transport)
        self._client.set_write_buffer_limits(self.server.limits.send_buffer_bytes)
        self.has_room = self.server.table.add(self)
        self.server.table.check_free_files(transport.get_extra_info("socket").fileno())
        self._watch.expect_first_request()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.server.table.discard(self)
        self._watch.close()
        self._stall.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        num_messages, is_in_body = len(self._messages), not self._payload.is_eof()
        super().data_received(data)
        if len(self._messages) > num_messages:
            message, self._payload = self._messages[-1]
            self._is_upgraded = isinstance(message, RawRequestMessage) and bool(message.upgrade)
            self._watch.note_end()
            self._watch.disarm()
            self.server.table.note_busy(self)
        elif data and not is_in_body and not self._is_upgraded:
            stage_before = self._watch.stage
            if stage_before is Stage.IDLE:
                self._watch.note_head()
            if (rejection := self._watch.check_piece(len(data), stage_before)) is not None:
                self._refuse(rejection)

    def drop_rest(self) -> None:
        """Stops reading. Called before a response with which the connection ends."""
        self._is_refused = True
        self._message_tail = b""

    async def finish_response(self, *args: Any) -> tuple[web.StreamResponse, bool]:
        """Called for each response, even to input that is not HTTP."""
        done = await super().finish_response(*args)
        if self._is_refused and self.transport is not None:
            self._end_writing()
            await asyncio.sleep(_LINGER_S)  # is cancelled when the client closes the connection
        elif not self._messages:
            self.server.table.note_idle(self)
        return done

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answers input that is not HTTP with a JSON error. The error does not repeat the input."""
        super().handle_error(request, status, exc, message)
        limits = self.server.limits
        if isinstance(exc, LineTooLong):
            failed = _failed(head_too_large(limits))
        elif message == _TOO_MANY_HEADERS:
            failed = _failed(too_many_headers(limits))
        else:
            failed = FailedRequestError(status, _MALFORMED if status == 400 else "Internal server error")
        self._is_refused = True
        answer = error_answer(failed, "")
        answer.force_close()
        return answer

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall.start(self.server.limits.send_timeout_s, self._client.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stall.stop()

    def evict(self) -> bool:
        """Closes this connection if it is idle. Returns False while its last response is not fully sent."""
        if self.transport is not None and self._client.get_write_buffer_size():
            return False
        self._client.abort()
        return True

    def _time_out(self, rejection: Rejection | None) -> None:
        if rejection is None:
            self.force_close()
        else:
            self._refuse(rejection)

    def _refuse(self, rejection: Rejection) -> None:
        """Rejects a head that is too slow or too long. A running request is completed first."""
        self._watch.disarm()
        self._is_refused = True
        if self.transport is None or self._messages or self._request_in_progress:
            self.close()
            return
        self.transport.write(rejection.encode((b"server", SERVER.encode())))
        self._end_writing()
        self._loop.call_later(_LINGER_S, self.force_close)

    def _end_writing(self) -> None:
        if self._client.can_write_eof():
            self._client.write_eof()


def _failed(rejection: Rejection) -> FailedRequestError:
    return FailedRequestError(rejection.status, rejection.message, closes=True)
