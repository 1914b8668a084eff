"""Builds the answers of all APIs: bodies, error bodies, and events of streams."""

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

Headers = tuple[tuple[bytes, bytes], ...]
_RETRY_AFTER: Headers = ((b"retry-after", b"1"),)
_HEADERS_OF_STATUS: dict[int, Headers] = {
    413: ((b"connection", b"close"),),
    415: ((b"accept-encoding", b"identity"),),
    503: _RETRY_AFTER,
}
"""Status -> additional headers. A 413 closes the connection, because the request's body is not read."""
ServerStatus = Literal["starting", "draining", "dead", "hung"]
_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def encode_named_event(payload: dict[str, Any]) -> bytes:
    """Encodes an event, whose name is the payload's member `type`."""
    name: str = payload["type"]
    return b"event: " + name.encode() + b"\n" + encode_event(payload)


def encode_event(payload: Any) -> bytes:
    """Encodes an event with JSON as its data."""
    return b"data: " + _encoder.encode(payload) + b"\n\n"


class ErrorDetails(msgspec.Struct):
    """Details for a client's library, so that it need not parse the message."""

    error_code: str


class ErrorInfo(msgspec.Struct, kw_only=True):
    """An error. `param` is the invalid field of the request."""

    message: str
    type: str
    param: str | None = None
    code: int
    details: ErrorDetails | UnsetType = UNSET


class ErrorResponse(msgspec.Struct):
    """The body of every error, except the 503 of a server that is not ready."""

    error: ErrorInfo
    detail: str | UnsetType = UNSET
    """`Not Found` for an endpoint that does not fit the model. FastAPI answers the same."""


class UnavailableInfo(msgspec.Struct, kw_only=True):
    """Why the server accepts no requests at the moment."""

    code: int = 503
    message: str
    type: str = "unavailable_error"


class UnavailableResponse(msgspec.Struct):
    """The body of a 503 while the server is not ready, for probes and requests."""

    error: UnavailableInfo
    status: ServerStatus
    phase: str | UnsetType = UNSET
    """The current phase of the start."""
    progress: float | UnsetType | None = UNSET
    """The progress of the start, from 0 to 1. Null if no earlier start was recorded."""
    elapsed_s: float | UnsetType = UNSET
    eta_s: float | UnsetType | None = UNSET

    @property
    def may_retry(self) -> bool:
        """Whether the response has a Retry-After header."""
        return self.status not in ("dead", "hung")


def error_response(message: str, *, type: str, code: int, param: str | None = None) -> ErrorResponse:
    """Builds an error body."""
    return ErrorResponse(ErrorInfo(message=message, type=type, param=param, code=code))


@dataclass(frozen=True)
class FailureFormat:
    """How an API writes errors."""

    to_body: Callable[[ErrorResponse], Any]
    encode_event: Callable[[Any], bytes]
    end: bytes
    """The last bytes of every stream, whether it failed or not."""

    def event(self, error: Exception) -> bytes:
        """Encodes an exception as an event of a stream."""
        return self.encode_event(self.to_body(describe_failure(error)))


OPENAI = FailureFormat(to_body=lambda response: response, encode_event=encode_event, end=LAST_EVENT)


def describe_failure(error: Exception) -> ErrorResponse:
    """Returns the error body for an exception. Logs an unexpected exception, and returns no details of it."""
    if isinstance(error, UnsupportedApiError):
        body = error_response(error.message, type=error.type, code=error.status)
        return structs.replace(body, detail="Not Found")
    if isinstance(error, RequestError):
        body = error_response(error.message, type=error.type, code=error.status, param=error.param)
        if isinstance(error, CodedRequestError):
            body.error.details = ErrorDetails(error.error_code)
        return body
    if isinstance(error, EngineError):
        return error_response(str(error), type="InternalServerError", code=500)
    logger.error("a request failed unexpectedly", exc_info=error)
    return error_response("Internal server error", type="InternalServerError", code=500)


async def end_stream(
    events: AsyncGenerator[bytes, None], failures: FailureFormat = OPENAI
) -> AsyncGenerator[bytes, None]:
    """Yields the events, then the API's end of streams. An exception becomes an error event before the end.

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


def _to_anthropic_error(response: ErrorResponse) -> dict[str, Any]:
    """Returns Anthropic's error, which also has the fields of OpenAI's error."""
    code = response.error.code
    default = "invalid_request_error" if code < HTTPStatus.INTERNAL_SERVER_ERROR else "api_error"
    error = structs.replace(response.error, type=_ERROR_TYPES.get(code, default))
    return {"type": "error", "error": error}


ANTHROPIC = FailureFormat(to_body=_to_anthropic_error, encode_event=encode_named_event, end=b"")


def failure_format(path: str) -> FailureFormat:
    """Returns the format of errors that occur on this path before the path's route runs."""
    return ANTHROPIC if path in ("/v1/messages", "/v1/messages/count_tokens") else OPENAI


class Answer(NamedTuple):
    """A whole response. The server adds its length."""

    body: bytes = b""
    status: int = 200
    headers: Headers = ()


def json_answer(body: Any, *, status: int = 200, headers: Headers = ()) -> Answer:
    """An answer with JSON. If `body` is bytes, it is already encoded."""
    payload = body if isinstance(body, bytes) else _encoder.encode(body)
    return Answer(payload, status, ((b"content-type", b"application/json"), *headers))


def failure_answer(error: Exception, failures: FailureFormat = OPENAI) -> Answer:
    """The answer to a request that failed before its response began."""
    described = describe_failure(error)
    status = described.error.code
    return json_answer(failures.to_body(described), status=status, headers=_HEADERS_OF_STATUS.get(status, ()))


def unavailable_answer(problem: UnavailableResponse, failures: FailureFormat = OPENAI) -> Answer:
    """A 503, because the server accepts no requests. May ask clients to retry (`may_retry`)."""
    error = error_response(problem.error.message, type=problem.error.type, code=503)
    body = problem if failures is OPENAI else failures.to_body(error)
    return json_answer(body, status=503, headers=_RETRY_AFTER if problem.may_retry else ())
