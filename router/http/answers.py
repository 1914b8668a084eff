"""The router's own answers: JSON, and errors in the format of the API that was called."""

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from base.json_depth import read_json
from router.model_pool import ModelRefused
from server.terms.http_body.response_body import (
    OPENAI,
    Answer,
    ErrorResponse,
    FailureFormat,
    encode_named_event,
    error_response,
    failure_format,
    json_answer,
)

_TYPES: Final = {
    401: "Unauthorized",
    403: "ForbiddenError",
    404: "NotFoundError",
    405: "Method Not Allowed",
    409: "ConflictError",
    413: "RequestEntityTooLargeError",
    415: "UnsupportedMediaTypeError",
    429: "RateLimitError",
    503: "ServiceUnavailableError",
}
_RESPONSES: Final = FailureFormat(
    to_body=lambda response: {"type": "error", "error": response.error}, encode_event=encode_named_event, end=b""
)
"""Streams of the Responses API have named events and no `[DONE]`. Whole answers have OpenAI's errors."""
_MOST_SHOWN: Final = 200
TEXT: Final = ((b"content-type", b"text/plain; charset=utf-8"),)


class FailedRequestError(Exception):
    """Is raised for a request that the router answers with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        closes: bool = False,
    ) -> None:
        """`closes`: whether the router closes the connection after the answer."""
        super().__init__(message)
        kind = _TYPES.get(status, "BadRequestError" if status < 500 else "InternalServerError")
        self.status = status
        self.closes = closes
        self.body = error_response(message, type=kind, code=status, param=param)
        self.headers = dict(headers or {})

    @classmethod
    def from_refused(cls, refused: ModelRefused) -> "FailedRequestError":
        """The error for a request that the model pool has refused."""
        after_s = refused.retry_after_s
        headers = None if after_s is None else {"Retry-After": str(max(1, math.ceil(after_s)))}
        param = "model" if refused.status == 404 else None
        return cls(refused.status, refused.message, param=param, headers=headers)


def error_answer(failed: FailedRequestError, path: str) -> Answer:
    """The response for an error, in the format of the path's API."""
    headers = tuple((name.lower().encode(), value.encode()) for name, value in failed.headers.items())
    if failed.closes:
        headers += ((b"connection", b"close"),)
    return json_answer(failure_format(path).to_body(failed.body), status=failed.status, headers=headers)


def error_events(body: ErrorResponse, path: str) -> bytes:
    """The events with which a stream that has begun ends after an error."""
    failures = _format_of_stream(path)
    return failures.encode_event(failures.to_body(body)) + failures.end


def relayed_error_events(status: int, body: bytes, path: str) -> bytes:
    """The events with which a stream that has begun ends after an error response of the model's server."""
    failures = _format_of_stream(path)
    with suppress(ValueError):
        match read_json(body):
            case {"error": _} as found:
                event = found if failures is OPENAI else {**found, "type": "error"}
                return failures.encode_event(event) + failures.end
    text = body[:_MOST_SHOWN].decode("utf-8", "replace")
    return error_events(FailedRequestError(status, f"The model's server answered {status}: {text}").body, path)


def _format_of_stream(path: str) -> FailureFormat:
    return _RESPONSES if path.startswith("/v1/responses") else failure_format(path)


def shown(name: str) -> str:
    """A name that a client has sent, as error messages show it: shortened and quoted."""
    text = name.encode("utf-8", "replace").decode()
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
