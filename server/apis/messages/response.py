"""Bodies of /v1/messages and /v1/messages/count_tokens: the responses, their events and errors."""

from http import HTTPStatus
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType, structs

from server.http_body.errors import OPENAI, ErrorInfo, ErrorResponse, FailureFormat
from server.http_body.response_parts import encode_named_event

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class MessagesUsage(msgspec.Struct, kw_only=True):
    """Tokens of a request; `input_tokens` are those that were neither read from nor written to the cache."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int | UnsetType = UNSET
    cache_read_input_tokens: int | UnsetType = UNSET


class TextBlock(msgspec.Struct, kw_only=True, tag_field="type", tag="text"):
    """A text that the model wrote."""

    text: str


class ThinkingBlock(msgspec.Struct, kw_only=True, tag_field="type", tag="thinking"):
    """The model's reasoning; a stream sends the signature at the end of the block."""

    thinking: str
    signature: str | UnsetType = UNSET


class ToolUseBlock(msgspec.Struct, kw_only=True, tag_field="type", tag="tool_use"):
    """A call that the model made."""

    id: str
    name: str
    input: dict[str, Any]


ResponseBlock = TextBlock | ThinkingBlock | ToolUseBlock


class MessagesResponse(msgspec.Struct, kw_only=True):
    """A generated message; the message of a stream's first event is still empty."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    content: list[ResponseBlock]
    model: str
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessagesUsage


class TextDelta(msgspec.Struct, tag_field="type", tag="text_delta"):
    """More of a text block."""

    text: str


class ThinkingDelta(msgspec.Struct, tag_field="type", tag="thinking_delta"):
    """More of a thinking block."""

    thinking: str


class SignatureDelta(msgspec.Struct, tag_field="type", tag="signature_delta"):
    """The end of a thinking block."""

    signature: str


class InputJsonDelta(msgspec.Struct, tag_field="type", tag="input_json_delta"):
    """More of a call's arguments."""

    partial_json: str


BlockDelta = TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta


class MessageStart(msgspec.Struct, tag_field="type", tag="message_start"):
    """The first event."""

    message: MessagesResponse


class ContentBlockStart(msgspec.Struct, tag_field="type", tag="content_block_start"):
    """Opens a block."""

    content_block: ResponseBlock
    index: int


class ContentBlockDelta(msgspec.Struct, tag_field="type", tag="content_block_delta"):
    """Continues the open block."""

    delta: BlockDelta
    index: int


class ContentBlockStop(msgspec.Struct, tag_field="type", tag="content_block_stop"):
    """Closes the open block."""

    index: int


class StopDelta(msgspec.Struct):
    """Why the message ends."""

    stop_reason: StopReason | None = None
    stop_sequence: str | None = None


class MessageDelta(msgspec.Struct, tag_field="type", tag="message_delta"):
    """The last event but one."""

    delta: StopDelta
    usage: MessagesUsage


class MessageStop(msgspec.Struct, tag_field="type", tag="message_stop"):
    """The last event."""


class MessagesError(msgspec.Struct, tag_field="type", tag="error"):
    """An error, as a body or as an event; with the fields of OpenAI's error too."""

    error: ErrorInfo


StreamEvent = (
    MessageStart | ContentBlockStart | ContentBlockDelta | ContentBlockStop | MessageDelta | MessageStop | MessagesError
)


class ContextManagement(msgspec.Struct):
    """What context management would have changed; nothing, here."""

    original_input_tokens: int


class CountTokensResponse(msgspec.Struct, kw_only=True):
    """The number of tokens of a prompt."""

    input_tokens: int
    context_management: ContextManagement


_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def _to_messages_error(response: ErrorResponse) -> MessagesError:
    code = response.error.code
    default = "invalid_request_error" if code < HTTPStatus.INTERNAL_SERVER_ERROR else "api_error"
    return MessagesError(structs.replace(response.error, type=_ERROR_TYPES.get(code, default)))


ANTHROPIC = FailureFormat(to_body=_to_messages_error, encode_event=encode_named_event, end=b"")


def is_anthropic(path: str) -> bool:
    """Whether a path belongs to Anthropic's API, which has errors and a header for keys of its own."""
    return path in ("/v1/messages", "/v1/messages/count_tokens")


def failure_format(path: str) -> FailureFormat:
    """The format of errors of a path, for those that occur outside of its route."""
    return ANTHROPIC if is_anthropic(path) else OPENAI
