"""The POST routes: JSON in, JSON or events out, everything undone when the client goes away."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from server.errors import RequestError
from server.protocol.decoding import RequestDecoder
from server.protocol.errors import UnavailableResponse
from server.routes.messages import (
    MAX_BODY_BYTES,
    ClientGoneError,
    Headers,
    read_header,
    read_json_body,
    send_binary,
    send_events,
    send_json,
)
from server.serving.answers import BinaryAnswer
from server.serving.failures import describe_failure
from server.serving.request_context import RequestContext
from server.serving.services import Services

T = TypeVar("T")

Answer = msgspec.Struct | bytes | BinaryAnswer | AsyncGenerator[bytes, None]
"""A body, one that is JSON already, one that is none, or events."""
Handler = Callable[[T, RequestContext], Awaitable[Answer]]

_LARGE_BODY_BYTES = 32 << 10
"""Decoding this much JSON takes about as long as a change of threads."""


class LongField(NamedTuple):
    """A field that may hold more than any body otherwise."""

    name: str
    max_bytes: Callable[[], int]
    """What it may add to a body's size; asked with each request."""


class JsonEndpoint(Generic[T]):
    """An ASGI application for one route; Starlette's Request and Response would cost more than they do here."""

    def __init__(
        self, services: Services, model: type[T], handle: Handler[T], *, long_field: LongField | None = None
    ) -> None:
        self.model = model
        self._services = services
        self._decoder = RequestDecoder(model, long_field.name if long_field else None)
        self._handle = handle
        self._long_field = long_field

    @property
    def max_body_bytes(self) -> int:
        """Longer bodies are refused as soon as that much has come."""
        return MAX_BODY_BYTES + (self._long_field.max_bytes() if self._long_field else 0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        unavailable = self._services.unavailable
        if unavailable is not None:
            await send_unavailable(send, unavailable)
            return
        with self._services.gate.hold():
            context = RequestContext(header_id=read_header(scope, b"x-request-id"))
            try:
                body = await read_json_body(scope, receive, max_bytes=self.max_body_bytes)
            except ClientGoneError:
                return
            except RequestError as err:
                await send_failure(send, err)
                return
            await _run_while_connected(self._answer(body, context, send), receive)

    async def _answer(self, body: list[bytes], context: RequestContext, send: Send) -> None:
        def headers() -> Headers:
            timing = context.times.server_timing
            return ((b"server-timing", timing.encode()),) if timing else ()

        try:
            answer = await self._handle(await self._decode(body), context)
        except Exception as err:  # noqa: BLE001
            await send_failure(send, err)
            return
        finally:
            self._services.metrics.loop.record_render(context.times.render_s)
        if isinstance(answer, msgspec.Struct | bytes):
            await send_json(send, answer, headers=headers())
        elif isinstance(answer, BinaryAnswer):
            await send_binary(send, answer.body, headers=(*answer.headers, *headers()))
        else:
            await send_events(send, answer, headers)

    async def _decode(self, parts: list[bytes]) -> T:
        if sum(map(len, parts)) <= _LARGE_BODY_BYTES:
            return self._decode_parts(parts)
        return await self._services.renderer.run_in_pool(self._decode_parts, parts)

    def _decode_parts(self, parts: list[bytes]) -> T:
        body = b"".join(parts)
        parts.clear()  # they would stay in memory for as long as the answer takes
        return self._decoder.decode(body)


async def send_failure(send: Send, error: Exception) -> None:
    """The error body of a request that failed before its answer began."""
    body = describe_failure(error)
    await send_json(send, body, status=body.error.code)


async def send_unavailable(send: Send, body: UnavailableResponse) -> None:
    """The 503 of a server that takes no requests; only one that starts will be back soon."""
    headers = () if body.status == "dead" else ((b"retry-after", b"1"),)
    await send_json(send, body, status=503, headers=headers)


async def _run_while_connected(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Cancels the work as soon as the client is gone; the body must have been read."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_wait_disconnect(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
    if not working.cancelled():
        working.result()


async def _wait_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
