"""Bodies of the responses of /v1/chat/completions and /v1/completions, whole and as chunks of a stream."""

from typing import Generic, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from server.generation.logprobs import ChatLogprobs, CompletionLogprobs, PromptLogprobs
from server.http_body.response_parts import Usage

C = TypeVar("C")


class GeneratedResponse(msgspec.Struct, Generic[C], kw_only=True):
    """What the whole responses of both have."""

    id: str
    object: str
    created: int
    model: str
    choices: list[C]
    service_tier: str | None = None
    system_fingerprint: str | None = None
    usage: Usage
    kv_transfer_params: None = None


class GeneratedChunk(msgspec.Struct, Generic[C], kw_only=True):
    """What the events of both streams have."""

    id: str
    object: str
    created: int
    model: str
    choices: list[C]
    usage: Usage | UnsetType = UNSET


class FunctionCall(msgspec.Struct):
    """The called function, with the arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, kw_only=True):
    """One member of `message.tool_calls`."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class DeltaFunctionCall(msgspec.Struct, kw_only=True):
    """The part that a chunk adds to a call."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class DeltaToolCall(msgspec.Struct, kw_only=True):
    """One member of `delta.tool_calls`; id, type and name are in the call's first chunk only."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: DeltaFunctionCall


class ChatMessage(msgspec.Struct, kw_only=True):
    """A generated message."""

    role: str
    content: str | None
    refusal: str | None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: list[ToolCall] | UnsetType = UNSET
    reasoning: str | None = None


class ChatChoice(msgspec.Struct, kw_only=True):
    """One generated message."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatResponse(GeneratedResponse[ChatChoice], kw_only=True):
    """A chat completion."""

    object: Literal["chat.completion"] = "chat.completion"
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None
    prompt_text: str | None = None


class ChatDelta(msgspec.Struct, kw_only=True):
    """The part that a chunk adds to one message."""

    role: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[DeltaToolCall] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, kw_only=True):
    """One message's part of a chunk."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(GeneratedChunk[ChatChunkChoice], kw_only=True):
    """One event of a streamed chat completion."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_text: str | UnsetType = UNSET


class CompletionChoice(msgspec.Struct, kw_only=True):
    """One generated text."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None


class CompletionResponse(GeneratedResponse[CompletionChoice], kw_only=True):
    """A completion."""

    object: Literal["text_completion"] = "text_completion"


class CompletionChunkChoice(msgspec.Struct, kw_only=True):
    """The part that a chunk adds to one text."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class CompletionChunk(GeneratedChunk[CompletionChunkChoice], kw_only=True):
    """One event of a streamed completion."""

    object: Literal["text_completion"] = "text_completion"
