"""Bodies of /v1/responses: the response and its output items."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from server.apis.responses.request import ReasoningOptions, ServiceTier, TextOptions
from server.generation.logprobs import ChatLogprob

ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "cancelled", "failed"]
OutputStatus = Literal["in_progress", "completed"]


class OutputText(msgspec.Struct, kw_only=True, tag_field="type", tag="output_text"):
    """The text of a message."""

    text: str
    annotations: list[Any] = []
    logprobs: list[ChatLogprob] | None = None


class ReasoningText(msgspec.Struct, kw_only=True, tag_field="type", tag="reasoning_text"):
    """The text of a reasoning item."""

    text: str


class MessageItem(msgspec.Struct, kw_only=True, tag_field="type", tag="message"):
    """A message of the model."""

    id: str
    status: OutputStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText] = []


class ReasoningItem(msgspec.Struct, kw_only=True, tag_field="type", tag="reasoning"):
    """The model's reasoning."""

    id: str
    status: OutputStatus
    summary: list[Any] = []
    content: list[ReasoningText] | None = None


class FunctionCallItem(msgspec.Struct, kw_only=True, tag_field="type", tag="function_call"):
    """A call of a function, with the arguments as JSON text."""

    id: str
    status: OutputStatus
    call_id: str
    name: str
    namespace: str | None = None
    arguments: str


class CustomToolCallItem(msgspec.Struct, kw_only=True, tag_field="type", tag="custom_tool_call"):
    """A call of a tool that takes free text."""

    id: str
    call_id: str
    name: str
    input: str


OutputItem = MessageItem | ReasoningItem | FunctionCallItem | CustomToolCallItem


class IncompleteDetails(msgspec.Struct):
    """Why a response ended early."""

    reason: Literal["max_output_tokens"]


class FailureDetails(msgspec.Struct):
    """Why a response failed."""

    code: Literal["server_error"]
    message: str


class InputTokensDetails(msgspec.Struct, kw_only=True):
    """Tokens from the prefix cache; the lists are empty, because no tools run in the server."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0
    input_tokens_per_turn: list[int] = []
    cached_tokens_per_turn: list[int] = []


class OutputTokensDetails(msgspec.Struct, kw_only=True):
    """Tokens of the reasoning; the rest is empty, because no tools run in the server."""

    reasoning_tokens: int = 0
    tool_output_tokens: int = 0
    output_tokens_per_turn: list[int] = []
    tool_output_tokens_per_turn: list[int] = []


class ResponseUsage(msgspec.Struct, kw_only=True):
    """The tokens of a response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class Response(msgspec.Struct, kw_only=True):
    """A response, complete or not."""

    id: str
    created_at: int
    error: FailureDetails | UnsetType = UNSET
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    metadata: dict[str, str] | None
    model: str
    object: Literal["response"] = "response"
    output: list[OutputItem] = []
    parallel_tool_calls: bool
    temperature: float
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float
    background: bool
    max_output_tokens: int
    max_tool_calls: int | None
    previous_response_id: str | None
    prompt: None = None
    reasoning: ReasoningOptions | None
    service_tier: ServiceTier
    status: ResponseStatus
    text: TextOptions | None
    top_logprobs: int | None
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None = None
    user: str | None
    presence_penalty: float
    frequency_penalty: float
    kv_transfer_params: None = None
    ec_transfer_params: None = None
    input_messages: None = None
    output_messages: None = None
