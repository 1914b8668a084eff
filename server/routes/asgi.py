"""ASGI messages: reads bodies, sends JSON and event streams. The hot path of every route."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.types import Message, Receive, Scope, Send

from base.errors import RequestError
from base.request_ids import is_valid
from server.http_body.errors import OPENAI, FailureFormat, UnavailableResponse, describe_failure, error_response
from server.http_body.response_parts import EVENTS_TYPE
from server.limits import flag_of
from server.operation.admission import Lease

_encoder = msgspec.json.Encoder()
Headers = tuple[tuple[bytes, bytes], ...]
_RETRY_AFTER: Headers = ((b"retry-after", b"1"),)
_HEADERS_OF_STATUS: dict[int, Headers] = {
    413: ((b"connection", b"close"),),
    415: ((b"accept-encoding", b"identity"),),
    503: _RETRY_AFTER,
}
"""413: the body is not read."""

_END: Message = {"type": "http.response.body", "body": b""}


class ClientGoneError(Exception):
    """The client disconnected before it had sent its whole request."""


def read_announced_bytes(scope: Scope, *, max_bytes: int) -> int:
    """The announced content length; 0 if it is missing. Called before the body is read.

    Raises:
        RequestError: the body is too large, compressed, or not declared as JSON.
    """
    encoding = read_header(scope, b"content-encoding")
    if encoding is not None and encoding.strip().lower() not in ("", "identity"):
        raise RequestError(
            f"Content-Encoding '{encoding}' is not supported: send the body as it is.",
            status=415,
            type="UnsupportedMediaTypeError",
        )
    media_type = read_header(scope, b"content-type") or ""
    if media_type.partition(";")[0].strip().lower() != "application/json":
        raise RequestError(f"Unsupported media type '{media_type}': only 'application/json' is allowed.")
    announced = int(read_header(scope, b"content-length") or 0)
    if announced > max_bytes:
        raise _too_large(max_bytes, f", and {announced} are announced")
    return announced


async def read_body(receive: Receive, lease: Lease, *, announced_bytes: int, max_bytes: int) -> list[bytes]:
    """The body in the parts in which it arrived, because joining many megabytes takes time.

    Raises:
        RequestError: the body is too large, or exceeds the admission limits.
        ClientGoneError: the client disconnected before its end.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > announced_bytes:  # a chunked body has no announced length
            if size > max_bytes:
                raise _too_large(max_bytes)
            lease.add_bytes(len(parts[-1]))
        if not message.get("more_body", False):
            return parts


def _too_large(max_bytes: int, announced: str = "") -> RequestError:
    message = f"The request body is larger than {max_bytes} bytes{announced} ({flag_of('max_body_bytes')})."
    return RequestError(message, status=413, type="RequestEntityTooLargeError")


def read_header(scope: Scope, name: bytes) -> str | None:
    """One header of the request; `name` in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return None


def read_request_id(scope: Scope) -> str | None:
    """The client's X-Request-Id; None if it is missing or unfit for logs, headers and bodies."""
    given = read_header(scope, b"x-request-id")
    return given if given is not None and is_valid(given) else None


async def send_json(send: Send, body: Any, *, status: int = 200, headers: Headers = ()) -> None:
    """Sends a whole response; bytes are sent as encoded JSON."""
    payload = body if isinstance(body, bytes) else _encoder.encode(body)
    await send_bytes(send, payload, content_type=b"application/json", status=status, headers=headers)


async def send_bytes(
    send: Send, payload: bytes, *, content_type: bytes, status: int = 200, headers: Headers = ()
) -> None:
    """Sends a whole response."""
    fixed = ((b"content-type", content_type), (b"content-length", str(len(payload)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": payload})


async def send_failure(send: Send, error: Exception, failures: FailureFormat = OPENAI) -> None:
    """Sends the error body of a request that failed before its response began."""
    described = describe_failure(error)
    status = described.error.code
    await send_json(send, failures.to_body(described), status=status, headers=_HEADERS_OF_STATUS.get(status, ()))


async def send_unavailable(send: Send, problem: UnavailableResponse, failures: FailureFormat = OPENAI) -> None:
    """Sends the 503 of a server that accepts no requests; clients may retry unless it is dead."""
    error = problem.error
    body = problem if failures is OPENAI else failures.to_body(error_response(error.message, type=error.type, code=503))
    await send_json(send, body, status=503, headers=_RETRY_AFTER if problem.may_retry else ())


async def send_events(send: Send, events: AsyncGenerator[bytes, None], headers: Callable[[], Headers]) -> None:
    """Sends a stream of server-sent events; closing the stream early closes the generator.

    The headers are sent with the first event, because they contain its timing.
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
    fixed = ((b"content-type", EVENTS_TYPE), (b"cache-control", b"no-cache"))
    return {"type": "http.response.start", "status": 200, "headers": [*fixed, *headers]}
