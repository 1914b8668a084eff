"""One request, and the response to it. Used on the event loop."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from time import time  # noqa: TID251 - the date is no duration
from typing import Protocol

import httptools

from base.http_requests import decode
from server.terms.http_body.response_body import EVENTS_TYPE, Answer, Headers

RawHeaders = list[tuple[bytes, bytes]]
"""Headers as the client sent them, with names in lower case."""
_STATUS_LINES = {status.value: b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
_CLOSE = (b"connection", b"close")
_OF_BODY = (b"content-length", b"transfer-encoding")
_CHUNKED = ((b"transfer-encoding", b"chunked"),)
_EVENT_HEADERS = ((b"content-type", EVENTS_TYPE), (b"cache-control", b"no-cache"))
_SWITCHING = 101
_WITHOUT_BODY = (_SWITCHING, 204, 304)
_SMALL_PART_BYTES = 1024
_MOST_COPIED = 65_536
"""Larger bodies are not copied behind the response's head."""


class ResponseChannel(Protocol):
    """The part of a connection that its requests use."""

    may_write: asyncio.Event
    """Set while the client reads fast enough."""

    @property
    def is_ending(self) -> bool:
        """Whether the server ends, so that no request may follow this one."""

    def write(self, data: bytes, /) -> None: ...

    def go_on(self) -> None:
        """Called when the handler has read what had arrived of the body."""

    def log_response(self, request: "Request", /) -> None:
        """Called before the head of the response is sent."""

    def end_response(self, request: "Request", /) -> None:
        """Called when the whole response was written."""

    def abort(self) -> None:
        """Closes the connection immediately."""


class ClientGoneError(Exception):
    """The client disconnected before it had sent its whole request."""


class Request:
    """A request whose head has arrived."""

    is_websocket = False
    """Whether the client asks for a WebSocket. All its further input is the body of this request."""
    has_date = False
    """Whether the response's own headers have its date."""
    _is_chunked = False

    def __init__(
        self, connection: ResponseChannel, method: str, target: bytes, headers: RawHeaders, version: str = "1.1"
    ) -> None:
        target_url = httptools.parse_url(target)
        path = (target_url.path or b"/").decode("ascii")
        self.method = method
        self.raw_path = path
        """The path as the client has spelled it."""
        self.path = decode(path)
        self.query = (target_url.query or b"").decode("ascii")
        self.headers = headers
        self.version = version
        self.keep_alive = version != "1.0"
        """Whether the connection stays open after the response."""
        self.added_headers: list[tuple[bytes, bytes]] = []
        """Headers that every response to this request has."""
        self.status: int | None = None
        """The status of the response. None before it begins."""
        self.num_announced = 0
        """The Content-Length of the response. 0 for a stream."""
        self.is_answered = False
        self.is_gone = False  # whether the client has disconnected too early
        self.path_argument = ""
        """The rest of the path, if the route has an open end."""
        self.wait_turn: Callable[[], Awaitable[None]] | None = None
        """Called before each further piece of the body is read."""
        self._connection = connection
        self._parts: list[bytes | bytearray] = []
        self.num_unread_bytes = 0
        """The bytes of the body that have arrived, and that `read` has not returned."""
        self._is_received = False
        self._has_read = False
        self._arrival: asyncio.Future[None] | None = None
        self._working: asyncio.Task[object] | None = None

    def add_part(self, part: bytes) -> None:
        """Adds a part of the body; `wake` must follow. Small parts are joined, as objects take memory."""
        if not part:
            return
        last = self._parts[-1] if self._parts else None
        if last is None or len(part) >= _SMALL_PART_BYTES:
            self._parts.append(part)
        elif isinstance(last, bytearray):
            last += part
        else:
            self._parts.append(bytearray(part))
        self.num_unread_bytes += len(part)

    def drop_body(self) -> None:
        """Drops what has not been read, because the request is answered."""
        self._parts, self.num_unread_bytes = [], 0

    def wake(self) -> None:
        """Lets `read` return what has arrived."""
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def end_body(self) -> None:
        self._is_received = True
        self.wake()

    def disconnect(self) -> None:
        """Ends the request, because the client is gone."""
        self.is_gone = True
        self.wake()
        if self._working is not None:
            self._working.cancel()
            self._working = None  # a cancelled task refers to its frames, and these to this object

    async def read(self) -> list[bytes]:
        """Returns the parts of the body that have arrived since the last call, or nothing at the end.

        Raises:
            ClientGoneError: the client has disconnected.
        """
        if self._is_received and not self._parts:
            return []
        if self._has_read and self.wait_turn is not None:
            await self.wait_turn()
        elif not self._parts and (find_header(self.headers, b"expect") or "").lower() == "100-continue":
            self._connection.write(b"" if self.version == "1.0" else b"HTTP/1.1 100 Continue\r\n\r\n")
        self._has_read = True
        while not (self._parts or self._is_received or self.is_gone):
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        if self.is_gone:
            raise ClientGoneError
        parts = list(map(bytes, self._parts))  # copies no bytes object
        self.drop_body()
        self._connection.go_on()
        return parts

    def replace_own_headers(self, headers: Headers) -> None:
        """Adds none of this server's own headers that are in `headers`, those of the response. Vary stays."""
        names = {name.lower() for name, _ in headers}
        self.has_date = b"date" in names
        self.added_headers = [each for each in self.added_headers if each[0] == b"vary" or each[0] not in names]

    def cancel_if_gone(self) -> None:
        """From now on, the current task is cancelled if the client disconnects before the response's end."""
        if self.is_gone:
            raise ClientGoneError
        self._working = asyncio.current_task()

    async def send(self, answer: Answer, reason: bytes = b"") -> None:
        """Sends a whole response. `reason` replaces the status's own phrase."""
        await self._connection.may_write.wait()
        if self.is_gone:
            return
        head = self._head(answer.status, answer.headers, len(answer.body), reason)
        if self.method == "HEAD" or len(answer.body) > _MOST_COPIED:
            self._connection.write(head)
            head = b""
        if self.method != "HEAD":
            self._connection.write(head + answer.body)
        self.end()

    async def begin(self, status: int, headers: Headers, *, num_bytes: int | None = None, reason: bytes = b"") -> None:
        """Sends the head of a response. `write` sends its body, and `end` ends it.

        If the handler returns without `end`, the client can see that the response is incomplete.
        """
        await self._connection.may_write.wait()
        self._connection.write(self._head(status, headers, num_bytes, reason))

    async def write(self, data: bytes) -> None:
        """Sends a part of the body, once the client has read enough of what was sent before."""
        if not self._connection.may_write.is_set():
            await self._connection.may_write.wait()
        self._connection.write(self._framed(data))

    def end(self) -> None:
        """Ends the response."""
        if self._is_chunked:
            self._connection.write(b"0\r\n\r\n")
        self.is_answered = True
        self._connection.end_response(self)

    def abort(self) -> None:
        """Closes the client's connection immediately."""
        self._connection.abort()

    async def stream(self, events: AsyncGenerator[bytes, None], headers: Callable[[], Headers] = tuple) -> None:
        """Sends a stream of server-sent events. Closes the generator if sending ends early.

        The headers are sent with the first event, because they contain its timing.
        """
        may_write, write = self._connection.may_write, self._connection.write
        async with aclosing(events):
            async for event in events:
                if not may_write.is_set():
                    await may_write.wait()
                head = self._head(200, (*_EVENT_HEADERS, *headers())) if self.status is None else b""
                write(head + self._framed(event))
        if self.status is not None:
            self.end()

    def _head(self, status: int, headers: Headers, num_bytes: int | None = None, reason: bytes = b"") -> bytes:
        """The head of a response with a body of `num_bytes`, or with an unknown length."""
        self.status = status
        if self._connection.is_ending or _CLOSE in headers:
            self.keep_alive = False
        framing: Headers = ()
        if num_bytes is not None:
            self.num_announced = num_bytes
            framing = ((b"content-length", b"%d" % num_bytes),)
        elif self.method != "HEAD" and status not in _WITHOUT_BODY:
            self._is_chunked = self.version != "1.0"
            framing = _CHUNKED if self._is_chunked else ()
        self._connection.log_response(self)
        common = () if self.has_date else (date_header(),)
        closing = () if self.keep_alive or status == _SWITCHING or _CLOSE in headers else (_CLOSE,)
        lines = [b"%b: %b\r\n" % field for field in (*common, *headers, *framing, *self.added_headers, *closing)]
        line = b"HTTP/1.1 %d %b\r\n" % (status, reason) if reason else _STATUS_LINES.get(status)
        return b"".join((line or b"HTTP/1.1 %d \r\n" % status, *lines, b"\r\n"))

    def _framed(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data


def date_header() -> tuple[bytes, bytes]:
    """The header with the time of now."""
    return _date_in(int(time()))


@lru_cache(maxsize=1)
def _date_in(second: int) -> tuple[bytes, bytes]:
    return b"date", formatdate(second, usegmt=True).encode()


def announces_body(headers: RawHeaders) -> bool:
    """Whether a request with these headers has a body that is not empty."""
    return any(name in _OF_BODY and value != b"0" for name, value in headers)


def find_header(headers: RawHeaders, name: bytes) -> str | None:
    """Returns the value of a header. `name` is in lower case."""
    for key, value in headers:
        if key == name:
            return value.decode("latin-1")
    return None
