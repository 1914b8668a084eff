"""The errors of /v1/messages, as bodies and as events, and which paths have them."""

from http import HTTPStatus
from typing import Any

from msgspec import structs

from server.http_body.errors import OPENAI, ErrorResponse, FailureFormat
from server.http_body.response_parts import encode_named_event

_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


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
