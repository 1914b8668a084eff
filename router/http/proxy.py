"""Passes requests to a model's server, and the responses to the client as fast as the client reads."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from time import perf_counter
from typing import Any, Final
from weakref import WeakKeyDictionary

import aiohttp
from aiohttp import hdrs
from multidict import CIMultiDict
from yarl import URL

from base.json_depth import read_json
from router.child.child import Child
from router.child.server import LOGIN
from router.http.answer_check import answer_fault, below, own_reason
from router.http.answers import FailedRequestError, error_events, relayed_error_events
from router.http.background import FollowedResponses
from router.http.client_request import ClientRequest
from router.http.request_body import ForwardedBody
from router.http.waiting import Patience, WaitingComments
from router.http.websocket import CONNECT_S, UPGRADE, open_websocket, relay_messages
from router.model_entry import ModelEntry
from router.model_pool import ModelPool, ModelRefused
from server.http.transport.http_request import RawHeaders
from server.terms.http_body.response_body import Answer, Headers

logger = logging.getLogger(__name__)

_HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
"""Headers that concern a single connection (RFC 9110) and are not passed on."""
_NOT_REQUESTED: Final = _HOP_BY_HOP | {b"host", b"expect"}
_FRAMING: Final = frozenset((b"content-length",))
_CORS: Final = b"access-control-"
_SESSION_ADDS: Final = (hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE)
"""Headers that aiohttp's client adds to a request unless they are skipped."""
_BEGIN_BYTES: Final = 4096
_WHOLE_BYTES: Final = 64 << 10
"""The longest body, by its announced length, that is written together with the head."""
_MOST_ERROR_BYTES: Final = 1 << 20
_ANSWER_S: Final = 2.0
"""Seconds that a server has to answer a request of the router itself."""
_MOST_TRIES: Final = 3
"""The most tries of a request. A reused connection may be closed, and the process may have ended."""
_IDEMPOTENT: Final = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE")
_RESPONSE_ID: Final = re.compile(rb'"id" ?: ?"(resp_[A-Za-z0-9_-]{1,200})"')
_ENDS_OF_EVENT: Final = (b"\n\n", b"\r\n\r\n")
_MOST_HEADER_BYTES: Final = 64 << 10
_READ_BYTES, _SIZED_READ_BYTES = 16 << 10, 256 << 10
"""What aiohttp buffers of a body in chunks, with one chunk for each 16 bytes, and of one with a length."""
_NO_LIMIT: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_read=None, sock_connect=CONNECT_S)


def headers_to_server(headers: RawHeaders, child: Child, keys: frozenset[bytes]) -> RawHeaders:
    """The headers that are passed on. Headers that may contain the router's key become the server's key.

    If the server's address contains a login, so does the client's own.
    """
    has_login = child.headers.get("authorization", "").startswith(LOGIN)
    replaced = keys | {b"authorization"} if has_login else keys
    dropped = _NOT_REQUESTED | replaced | _named_by_connection(headers)
    passed = [each for each in headers if each[0] not in dropped]
    if replaced:
        for name, value in child.headers.items():
            passed.append((name.lower().encode(), value.encode()))
    return passed


def headers_to_client(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The headers of a server's response that are passed on. Only CORS headers are the router's own."""
    dropped = _HOP_BY_HOP | _FRAMING | _named_by_connection(headers)
    passed: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        lower = name.lower()
        if lower not in dropped and not lower.startswith(_CORS):
            passed.append((name, value))
    return tuple(passed)


def _named_by_connection(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """The headers that the header Connection names, which concern only this connection."""
    named = (value for name, value in headers if name.lower() == b"connection")
    return frozenset(name.strip().lower() for value in named for name in value.split(b","))


def _text(value: bytes) -> str:
    """Decodes bytes that are not UTF-8 as Latin-1. aiohttp's client could not send them otherwise."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


@dataclass(frozen=True, kw_only=True)
class RelayedCall:
    """A request whose body has been read, and the model that answers it."""

    request: ClientRequest
    entry: ModelEntry
    path: str
    """The path as the client has spelled it, without the router's own prefixes."""
    body: ForwardedBody
    may_wait_visibly: bool
    """Whether comments may be sent while the request waits. The response must be a stream of events."""
    is_background: bool
    """Whether the request is for a background response, which the model continues without the client."""
    dropped: frozenset[bytes]
    """Lower-case names of headers that are not passed on, because they contain the router's keys."""


class Proxy:
    """Passes requests to models' servers. Used on the event loop."""

    def __init__(self, pool: ModelPool, patience: Patience) -> None:
        self.background = FollowedResponses(pool, self._goes_on, patience)
        self._pool = pool
        self._patience = patience
        self._sessions: WeakKeyDictionary[Child, aiohttp.ClientSession] = WeakKeyDictionary()

    async def relay(self, call: RelayedCall) -> None:
        """Passes the request on, and sends the response. Raises ModelRefused before it."""
        call.request.record.model = call.entry.name
        http = call.request.http
        name = call.entry.name
        comments = WaitingComments(http, lambda: self._pool.progress(name), self._patience.comment_s)
        if call.may_wait_visibly and not self._pool.is_ready(name):
            comments.start()
        try:
            await self._relay(call, comments)
        except ModelRefused as refused:
            if not await comments.end():
                raise
            call.request.record.final_status = refused.status
            await http.write(error_events(refused, call.path))
            http.end()
        finally:
            comments.close()

    async def relay_websocket(
        self, request: ClientRequest, entry: ModelEntry, path: str, dropped: frozenset[bytes]
    ) -> None:
        """Passes messages on in both directions, until both sides have closed their WebSocket."""
        request.record.model = entry.name
        http = request.http
        async with self._pool.lease(entry.name) as child:
            passed = headers_to_server(http.headers, child, dropped)
            try:
                async with open_websocket(child.connector, _target(child, path, http.query), passed) as server:
                    if fault := answer_fault(server.status, server.headers, is_handshake=True):
                        raise _faulty(fault)
                    if server.status != HTTPStatus.SWITCHING_PROTOCOLS:
                        text = f"The model's server answers {server.status} {server.reason}."
                        raise ModelRefused(server.status if server.status >= 400 else 502, text)
                    request.record.final_status = server.status
                    passed_back = headers_to_client(server.headers)
                    http.replace_own_headers(passed_back)
                    await http.begin(server.status, (*UPGRADE, *passed_back))
                    await relay_messages(http, server, lambda: not self._pool.is_ready(entry.name), self._patience)
            except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as err:
                raise await _ended(child, err) from err

    async def ask(self, child: Child, path: str) -> bytes | None:
        """The body of a server's short answer to the router's own GET. None if the status is not 200."""
        answer = await self.fetch(child, path)
        return answer.body if answer is not None and answer.status == 200 else None

    async def fetch(self, child: Child, path: str) -> Answer | None:
        """A server's short answer to the router's own GET, without a lease. None if there is no answer."""
        headers = {hdrs.ACCEPT_ENCODING: "identity", **child.headers}
        try:
            async with (
                asyncio.timeout(_ANSWER_S),
                self._session_of(child).get(_target(child, path, ""), headers=headers) as answer,
            ):
                media_type = answer.headers.get(hdrs.CONTENT_TYPE) or "application/json"
                return Answer(
                    b"".join([part async for part in _parts(answer.content)]),
                    answer.status,
                    ((b"content-type", media_type.encode()),),
                )
        except (TimeoutError, aiohttp.ClientError, OSError) as err:
            logger.debug("%s %s is not answered: %s", child.base_url, path, err)
            return None

    async def _relay(self, call: RelayedCall, comments: WaitingComments) -> None:
        """Sends the request, and repeats it if the server has closed the connection without reading it."""
        reason = ""
        for _ in range(_MOST_TRIES):
            try:
                await self._send(call, comments)
                return
            except _NotSentError as err:
                reason = str(err)
                logger.info("%s is requested again: %s", call.entry.name, reason)
        raise ModelRefused(503, f"The server of `{call.entry.name}` accepts no connections: {reason}", 1.0)

    async def _send(self, call: RelayedCall, comments: WaitingComments) -> None:
        """Sends the request once. The lease lasts until the response is complete, even in the background."""
        made = self.background.find(call.path)
        async with AsyncExitStack() as lease:
            if made is not None and made.entry.name == call.entry.name:  # even while it admits no others
                child = made.child
                is_last_use = call.path == made.path and not await self._goes_on(child, call.path)
            else:
                child = await lease.enter_async_context(self._pool.lease(call.entry.name))
                made, is_last_use = None, False
            has_begun = await comments.end()
            upstream = await self._request(call, child, has_begun=has_begun)
            is_read = False
            with closing(_Copy(upstream, child, call, self._pool, self._patience.stall_s)) as copy:
                try:
                    with _closing(upstream):
                        await (_continue if has_begun else _answer)(call, upstream, child, copy)
                        is_whole = upstream.status == 200 and upstream.content.is_eof()
                        is_read = is_whole and (is_last_use or upstream.content_type == "text/event-stream")
                    if made is not None:
                        made.is_read |= is_read
                finally:  # also if the client has left, because the model continues
                    if call.is_background and (response_id := copy.response_id) is not None:
                        self.background.keep(response_id, call.entry, child, lease.pop_all(), is_read=is_read)

    async def _request(self, call: RelayedCall, child: Child, *, has_begun: bool) -> aiohttp.ClientResponse:
        """Sends the request, and returns once the head of the response has arrived.

        Args:
            has_begun: whether the response to the client has begun. Then the body must not be compressed.

        Raises:
            _NotSentError: the request may be sent again.
            ModelRefused: the server has ended, or its answer is not valid.
        """
        passed = headers_to_server(call.request.http.headers, child, call.dropped)
        headers = CIMultiDict((name.decode("ascii"), _text(value)) for name, value in passed)
        if has_begun:
            headers.popall(hdrs.ACCEPT_ENCODING, None)
        data = call.body.data()
        if data is not None:
            headers[hdrs.CONTENT_LENGTH.lower()] = str(call.body.num_bytes)
        reuses: list[object] = []
        try:
            answer = await self._session_of(child).request(
                call.request.method,
                _target(child, call.path, call.request.http.query),
                headers=headers,
                data=data,
                allow_redirects=False,
                trace_request_ctx=reuses,
            )
            is_refused = answer.status == HTTPStatus.SERVICE_UNAVAILABLE and call.entry.foreign is None
            if is_refused and (reason := await self._find_end(child)):
                answer.close()
                raise _NotSentError(reason)
            if fault := answer_fault(answer.status, answer.raw_headers):
                _abort(answer)
                raise _faulty(fault)
            return answer
        except aiohttp.ClientConnectorError as err:
            await child.end_reason()
            raise _NotSentError(str(err)) from err
        except (aiohttp.ClientError, ConnectionError) as err:
            if reuses and await _may_repeat(call.request.method, child, err):
                raise _NotSentError(str(err)) from err
            raise await _ended(child, err) from err
        except ValueError as err:  # aiohttp's client cannot send it
            raise FailedRequestError(400, f"The request cannot be passed on: {err}.") from err

    async def _goes_on(self, child: Child, path: str) -> bool:
        """Whether the server is still generating a stored response. True if the server does not answer."""
        answer = await self.fetch(child, path)
        return answer is None or _status_of(answer.body) in ("queued", "in_progress")

    async def _find_end(self, child: Child) -> str:
        """Why the server that has refused a request is ending. Empty if it is not ending, or if it hangs."""
        health = await self.fetch(child, "/health")
        if health is not None and health.status == HTTPStatus.OK:
            return ""
        if health is not None and _status_of(health.body) == "hung":
            return ""
        return await child.end_reason()

    def _session_of(self, child: Child) -> aiohttp.ClientSession:
        session = self._sessions.get(child)
        if session is None or session.closed:
            session = aiohttp.ClientSession(
                connector=child.connector,
                connector_owner=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=_SESSION_ADDS,
                timeout=_NO_LIMIT,
                max_line_size=_MOST_HEADER_BYTES,
                max_field_size=_MOST_HEADER_BYTES,
                read_bufsize=_READ_BYTES,
                trace_configs=[_noting_reuse()],
            )
            self._sessions[child] = session
        return session


class _NotSentError(Exception):
    """The request may be sent again: it was not read completely, or it has the same effect twice."""


async def _may_repeat(method: str, child: Child, err: Exception) -> bool:
    """Whether a request that has failed on a reused connection may be sent again (RFC 9110, 9.2.2).

    After a reset on a UNIX socket, the server has left bytes of the request unread. An end, or a reset over
    TCP, may also come from a server that has read the request.
    """
    is_reset = isinstance(err, OSError)
    if is_reset and isinstance(child.connector, aiohttp.UnixConnector):
        return True
    is_end = isinstance(err, aiohttp.ServerDisconnectedError)
    return method in _IDEMPOTENT and (is_reset or (is_end and not await child.end_reason()))


def _faulty(fault: str) -> ModelRefused:
    return ModelRefused(HTTPStatus.BAD_GATEWAY, f"The answer of the model's server is not valid HTTP: {fault}.")


def _noting_reuse() -> aiohttp.TraceConfig:
    """A trace that adds an item to the list of a request that reuses a connection."""

    async def note(_: aiohttp.ClientSession, context: Any, parameters: object) -> None:
        if context.trace_request_ctx is not None:
            context.trace_request_ctx.append(parameters)

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(note)
    return trace


@contextmanager
def _closing(upstream: aiohttp.ClientResponse) -> Iterator[None]:
    """Closes the connection to the model's server, unless the response was read completely."""
    try:
        yield
    finally:
        if upstream.content.is_eof():
            upstream.release()
        else:
            _abort(upstream)


def _abort(upstream: aiohttp.ClientResponse) -> None:
    """Closes the connection, without waiting until the server has read what was written."""
    if (connection := upstream.connection) is not None and connection.transport is not None:
        connection.transport.abort()
    upstream.close()


async def _answer(call: RelayedCall, upstream: aiohttp.ClientResponse, child: Child, copy: "_Copy") -> None:
    """Sends the response to the client while it arrives from the server."""
    http = call.request.http
    prefix = http.raw_path.rpartition(call.path)[0].encode()  # such as /upstream/NAME
    own_address = f"{child.base_url}/".encode()
    passed = headers_to_client(upstream.raw_headers)
    http.replace_own_headers(passed)
    relocated: list[tuple[bytes, bytes]] = []
    for name, value in passed:
        is_location = name.lower() == b"location"
        relocated.append((name, below(prefix, own_address, value) if is_location else value))
    headers = tuple(relocated)
    length = upstream.content_length
    reason = own_reason((upstream.reason or "").encode("utf-8", "surrogateescape"))
    if length is None or length > _WHOLE_BYTES or http.method == "HEAD":
        await http.begin(upstream.status, headers, num_bytes=length, reason=reason)
        if length is not None:  # and there are no chunks
            upstream.content.set_read_chunk_size(_SIZED_READ_BYTES)
        await copy.run()
        return
    try:
        body = await upstream.read()
    except aiohttp.ClientError as err:
        raise await _ended(child, err) from err
    copy.keep(body)
    await http.send(Answer(body, upstream.status, headers), reason)


async def _continue(call: RelayedCall, upstream: aiohttp.ClientResponse, child: Child, copy: "_Copy") -> None:
    """Sends the body after the comments. A body that is not a stream of events becomes an error event."""
    if upstream.status == 200 and upstream.content_type == "text/event-stream":
        await copy.run()
        return
    call.request.record.final_status = upstream.status if upstream.status >= 400 else HTTPStatus.BAD_GATEWAY
    body = bytearray()
    with suppress(aiohttp.ClientError):
        async for part in _parts(upstream.content):
            body += part
            if len(body) >= _MOST_ERROR_BYTES:
                break
    await call.request.http.write(relayed_error_events(upstream.status, bytes(body), call.path))
    call.request.http.end()


def _status_of(body: bytes) -> str:
    """The member `status` of a server's JSON answer. Empty if there is none."""
    with suppress(ValueError):
        match read_json(body):
            case {"status": str(status)}:
                return status
    return ""


class _Copy:
    """Copies the body of a response from the server to the client."""

    def __init__(
        self, upstream: aiohttp.ClientResponse, child: Child, call: RelayedCall, pool: ModelPool, stall_s: float
    ) -> None:
        self.begin = b""
        """The beginning of the body. It contains the id if the response is stored."""
        self._upstream = upstream
        self._child = child
        self._call = call
        self._request = call.request
        self._pool = pool
        self._is_between_events = upstream.content_type == "text/event-stream"
        self._stall_s = stall_s
        self._loop = asyncio.get_running_loop()
        self._writing_since_s: float | None = None
        self._timer = self._loop.call_later(self._stall_s / 3, self._check)

    @property
    def response_id(self) -> str | None:
        """The id of a stored response, which is at the beginning of its body. None for other responses."""
        found = _RESPONSE_ID.search(self.begin)
        return None if found is None else found[1].decode()

    def keep(self, part: bytes) -> None:
        """Notes the beginning of the body, and when its first byte has arrived."""
        if not self.begin:
            self._request.record.first_byte_s = perf_counter()
        self.begin += part[:_BEGIN_BYTES]

    async def run(self) -> None:
        """Copies the body. If the server breaks off, a stream gets an error event, another body is cut."""
        is_stream, http, content = self._is_between_events, self._request.http, self._upstream.content
        read, write, time = content.readany, http.write, self._loop.time
        num_bytes = 0
        while True:
            try:
                part = await read()
            except aiohttp.ClientError as err:
                await self._end_broken(err)
                return
            if not part:
                http.end()
                return
            if len(self.begin) < _BEGIN_BYTES:
                self.keep(part)
            self._writing_since_s = time()
            await write(part)
            self._writing_since_s = None
            self._is_between_events = is_stream and part.endswith(_ENDS_OF_EVENT)
            num_bytes += len(part)
            if content.total_bytes > num_bytes:  # aiohttp has parsed the next part, for which no read waits
                await asyncio.sleep(0)

    async def _end_broken(self, err: Exception) -> None:
        logger.warning("the server of a model broke a response off: %s", err)
        self._request.record.final_status = HTTPStatus.BAD_GATEWAY
        if self._is_between_events:
            answer = await _ended(self._child, err)
            await self._request.http.write(error_events(answer, self._call.path))
            self._request.http.end()

    def close(self) -> None:
        """Stops the timer. Called when the copy has ended."""
        self._timer.cancel()

    def _check(self) -> None:
        """Disconnects the client if it does not read while other models wait for memory."""
        since_s = self._writing_since_s
        is_stalled = since_s is not None and self._loop.time() - since_s >= self._stall_s
        is_room_wanted = not self._pool.is_ready(self._call.entry.name)
        if is_stalled and is_room_wanted:
            logger.info("a client that does not read is disconnected: other models wait for the memory of its model")
            self._request.http.abort()
        self._timer = self._loop.call_later(self._stall_s / 3, self._check)


async def _parts(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The parts of a body. If aiohttp has already parsed the next part, other work gets a turn first."""
    num_bytes = 0
    while part := await content.readany():
        yield part
        num_bytes += len(part)
        if content.total_bytes > num_bytes:
            await asyncio.sleep(0)


async def _ended(child: Child, err: Exception) -> ModelRefused:
    """The error for the client when the server has not answered. The error says why."""
    reason = await child.end_reason()
    text = f"The model's server has ended: {reason}" if reason else f"The model's server broke off: {err}"
    return ModelRefused(503, text, 1.0)


def _target(child: Child, path: str, query: str) -> URL:
    """The URL at the model's server. Path and query are spelled as the client has spelled them."""
    base = URL(child.base_url)
    prefix = base.raw_path.rstrip("/")
    return URL.build(
        scheme=base.scheme, authority=base.raw_authority, path=prefix + path, query_string=query, encoded=True
    )
