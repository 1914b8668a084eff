"""The router's own answers: JSON, and errors in the format of the API that was called."""

import math
from contextlib import suppress
from typing import Final

from base.errors import RequestError
from base.json_depth import read_json
from router.model_pool import ModelRefused
from server.terms.http_body.response_body import (
    OPENAI,
    Answer,
    FailureFormat,
    Headers,
    describe_failure,
    encode_named_event,
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
CLOSES: Final = ((b"connection", b"close"),)
"""The header of an answer with which the connection ends."""


class FailedRequestError(RequestError):
    """Is raised for a request that the router answers with an error."""

    def __init__(self, status: int, message: str, *, param: str | None = None, headers: Headers = ()) -> None:
        kind = _TYPES.get(status, "BadRequestError" if status < 500 else "InternalServerError")
        super().__init__(message, param=param, status=status, type=kind)
        self.headers = headers


def error_answer(error: Exception, path: str) -> Answer:
    """The response for an error, in the format of the path's API. Logs an unexpected error."""
    failed = _as_failed(error)
    body = describe_failure(failed)
    headers = failed.headers if isinstance(failed, FailedRequestError) else ()
    return json_answer(failure_format(path).to_body(body), status=body.error.code, headers=headers)


def error_events(error: Exception, path: str) -> bytes:
    """The events with which a stream that has begun ends after an error."""
    failures = _format_of_stream(path)
    return failures.event(_as_failed(error)) + failures.end


def relayed_error_events(status: int, body: bytes, path: str) -> bytes:
    """The events with which a stream that has begun ends after an error response of the model's server."""
    failures = _format_of_stream(path)
    with suppress(ValueError):
        match read_json(body):
            case {"error": _} as found:
                event = found if failures is OPENAI else {**found, "type": "error"}
                return failures.encode_event(event) + failures.end
    text = body[:_MOST_SHOWN].decode("utf-8", "replace")
    return error_events(FailedRequestError(status, f"The model's server answered {status}: {text}"), path)


def _as_failed(error: Exception) -> Exception:
    if not isinstance(error, ModelRefused):
        return error
    headers = () if error.retry_after_s is None else retry_after(error.retry_after_s)
    param = "model" if error.status == 404 else None
    return FailedRequestError(error.status, error.message, param=param, headers=headers)


def retry_after(seconds: float) -> Headers:
    """The header `Retry-After`, in whole seconds, at least one."""
    return ((b"retry-after", b"%d" % max(1, math.ceil(seconds))),)


def _format_of_stream(path: str) -> FailureFormat:
    return _RESPONSES if path.startswith("/v1/responses") else failure_format(path)


def shown(name: str) -> str:
    """A name that a client has sent, as error messages show it: shortened and quoted."""
    text = name.encode("utf-8", "replace").decode()
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
