"""The POST routes: JSON in, JSON or events out, everything undone when the client goes away."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from server.protocol.decoding import RequestDecoder
from server.protocol.errors import UnavailableResponse
from server.routes.messages import ClientGoneError, read_header, read_json_body, send_events, send_json
from server.serving.failures import describe_failure
from server.serving.services import Services

T = TypeVar("T")

Answer = msgspec.Struct | AsyncGenerator[bytes, None]
Handler = Callable[[T, str | None], Awaitable[Answer]]
"""Takes the decoded request and the client's X-Request-Id."""


class JsonEndpoint(Generic[T]):
    """An ASGI application for one route; Starlette's Request and Response would cost more than they do here."""

    def __init__(self, services: Services, model: type[T], handle: Handler[T]) -> None:
        self.model = model
        self._services = services
        self._decoder = RequestDecoder(model)
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        unavailable = self._services.unavailable
        if unavailable is not None:
            await send_unavailable(send, unavailable)
            return
        with self._services.gate.hold():
            try:
                request = self._decoder.decode(await read_json_body(scope, receive))
            except ClientGoneError:
                return
            except Exception as err:  # noqa: BLE001
                await send_failure(send, err)
                return
            header_id = read_header(scope, b"x-request-id")
            await _run_while_connected(self._answer(request, header_id, send), receive)

    async def _answer(self, request: T, header_id: str | None, send: Send) -> None:
        try:
            answer = await self._handle(request, header_id)
        except Exception as err:  # noqa: BLE001
            await send_failure(send, err)
            return
        if isinstance(answer, msgspec.Struct):
            await send_json(send, answer)
        else:
            await send_events(send, answer)


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
