"""What the answers of all APIs share: events, errors as bodies, the 503 of a server that is not ready."""

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Literal, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType, structs

from base.errors import CodedRequestError, EngineError, RequestError, UnsupportedApiError

EVENTS_TYPE: Final = b"text/event-stream; charset=utf-8"
"""The media type of a stream of events."""
LAST_EVENT: Final = b"data: [DONE]\n\n"

_encoder = msgspec.json.Encoder()

logger = logging.getLogger(__name__)
ServerStatus = Literal["starting", "restarting", "draining", "dead"]
_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class BinaryResponse(NamedTuple):
    """A body of bytes, and its type."""

    body: bytes
    content_type: bytes


def encode_named_event(payload: dict[str, Any]) -> bytes:
    """One event with its type as its name."""
    name: str = payload["type"]
    return b"event: " + name.encode() + b"\n" + encode_event(payload)


def encode_event(payload: Any) -> bytes:
    """One event with a body as JSON."""
    return b"data: " + _encoder.encode(payload) + b"\n\n"


class ErrorDetails(msgspec.Struct):
    """What a client's library reads, instead of the message."""

    error_code: str


class ErrorInfo(msgspec.Struct, kw_only=True):
    """An error; `param` is the invalid request field."""

    message: str
    type: str
    param: str | None = None
    code: int
    details: ErrorDetails | UnsetType = UNSET


class ErrorResponse(msgspec.Struct):
    """The body of every error, except the 503 of a server that is not ready."""

    error: ErrorInfo
    detail: str | UnsetType = UNSET
    """`Not Found`, as FastAPI answers, if the endpoint does not fit the model."""


class UnavailableInfo(msgspec.Struct, kw_only=True):
    """Why the server accepts no requests at the moment."""

    code: int = 503
    message: str
    type: str = "unavailable_error"


class UnavailableResponse(msgspec.Struct):
    """The body of a 503, for probes and for requests while the server is not ready."""

    error: UnavailableInfo
    status: ServerStatus
    phase: str | UnsetType = UNSET
    """The current phase of the start."""
    progress: float | UnsetType | None = UNSET
    """0 to 1; null if there is no record of an earlier start."""
    elapsed_s: float | UnsetType = UNSET
    eta_s: float | UnsetType | None = UNSET

    @property
    def may_retry(self) -> bool:
        """Whether the client is told to send the request again."""
        return self.status != "dead"


def error_response(message: str, *, type: str, code: int, param: str | None = None) -> ErrorResponse:
    """Builds an error body."""
    return ErrorResponse(ErrorInfo(message=message, type=type, param=param, code=code))


@dataclass(frozen=True)
class FailureFormat:
    """How an API writes errors."""

    to_body: Callable[[ErrorResponse], Any]
    encode_event: Callable[[Any], bytes]
    end: bytes
    """The last event of every stream, failed or not."""

    def event(self, error: Exception) -> bytes:
        """An exception as an event of a stream."""
        return self.encode_event(self.to_body(describe_failure(error)))


OPENAI = FailureFormat(to_body=lambda response: response, encode_event=encode_event, end=LAST_EVENT)


def describe_failure(error: Exception) -> ErrorResponse:
    """The error body of any exception; an unexpected one is logged, and its body gives no details."""
    if isinstance(error, UnsupportedApiError):
        body = error_response(error.message, type=error.type, code=error.status)
        return structs.replace(body, detail="Not Found")
    if isinstance(error, RequestError):
        body = error_response(error.message, type=error.type, code=error.status, param=error.param)
        if isinstance(error, CodedRequestError):
            body.error.details = ErrorDetails(error.error_code)
        return body
    if isinstance(error, RecursionError):
        return error_response("The request is nested too deeply.", type="BadRequestError", code=400)
    if isinstance(error, EngineError):
        return error_response(str(error), type="InternalServerError", code=500)
    logger.error("a request failed unexpectedly", exc_info=error)
    return error_response("Internal server error", type="InternalServerError", code=500)


async def end_stream(
    events: AsyncGenerator[bytes, None], failures: FailureFormat = OPENAI
) -> AsyncGenerator[bytes, None]:
    """The stream followed by its end, if its API has one; an exception becomes an error event before it.

    Raises:
        RequestError: the engine has rejected the request before the first event.
    """
    has_begun = False
    try:
        async with aclosing(events):
            async for event in events:
                has_begun = True
                yield event
    except Exception as err:
        if isinstance(err, RequestError) and not has_begun:
            raise
        yield failures.event(err)
    if failures.end:
        yield failures.end


def _to_messages_error(response: ErrorResponse) -> dict[str, Any]:
    """With the fields of OpenAI's error, too."""
    code = response.error.code
    default = "invalid_request_error" if code < HTTPStatus.INTERNAL_SERVER_ERROR else "api_error"
    return {"type": "error", "error": structs.replace(response.error, type=_ERROR_TYPES.get(code, default))}


ANTHROPIC = FailureFormat(to_body=_to_messages_error, encode_event=encode_named_event, end=b"")


def is_anthropic(path: str) -> bool:
    """Whether a path belongs to Anthropic's API, which has errors and a header for keys of its own."""
    return path in ("/v1/messages", "/v1/messages/count_tokens")


def failure_format(path: str) -> FailureFormat:
    """The format of errors of a path, for those that occur outside of its route."""
    return ANTHROPIC if is_anthropic(path) else OPENAI
