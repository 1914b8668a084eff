"""ASGI messages: bodies in, JSON and event streams out. The hot path of every route."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.types import Message, Receive, Scope, Send

from server import sse
from server.errors import RequestError

MAX_BODY_BYTES = 32 << 20

_encoder = msgspec.json.Encoder()
Headers = tuple[tuple[bytes, bytes], ...]
_END: Message = {"type": "http.response.body", "body": b""}


class ClientGoneError(Exception):
    """The client closed the connection before it had sent its whole request."""


async def read_json_body(scope: Scope, receive: Receive, *, max_bytes: int = MAX_BODY_BYTES) -> list[bytes]:
    """The request's body, in the parts in which it came: putting many megabytes together takes its time.

    Raises:
        RequestError: it is too large, or not declared as JSON.
        ClientGoneError: it never came.
    """
    media_type = read_header(scope, b"content-type") or ""
    if media_type.partition(";")[0].strip().lower() != "application/json":
        raise RequestError(f"Unsupported media type '{media_type}': only 'application/json' is allowed.")
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > max_bytes:
            raise RequestError(f"The request body is larger than {max_bytes} bytes.")
        if not message.get("more_body", False):
            return parts


def read_header(scope: Scope, name: bytes) -> str | None:
    """One header of the request; `name` in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return None


async def send_json(send: Send, body: Any, *, status: int = 200, headers: Headers = ()) -> None:
    """A whole answer; bytes are JSON already."""
    payload = body if isinstance(body, bytes) else _encoder.encode(body)
    fixed = ((b"content-type", b"application/json"), (b"content-length", str(len(payload)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": payload})


async def send_binary(send: Send, payload: bytes, *, headers: Headers) -> None:
    """A whole answer that is no JSON."""
    fixed = ((b"content-type", b"application/octet-stream"), (b"content-length", str(len(payload)).encode()))
    await send({"type": "http.response.start", "status": 200, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": payload})


async def send_events(send: Send, events: AsyncGenerator[bytes, None], headers: Callable[[], Headers]) -> None:
    """A stream of server-sent events; closing the stream early closes the generator.

    The headers go out with the first event, when it is known how long that took.
    """
    has_begun = False
    async with aclosing(events):
        async for event in events:
            if not has_begun:
                has_begun = True
                await send(_stream_start(headers()))
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send(_END)


def _stream_start(headers: Headers) -> Message:
    fixed = ((b"content-type", sse.MEDIA_TYPE), (b"cache-control", b"no-cache"))
    return {"type": "http.response.start", "status": 200, "headers": [*fixed, *headers]}
