"""Bodies of /v1/responses: the request, with vLLM's fields, ranges and defaults."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from server.apis.responses.input_items import InputItem
from server.errors import RequestError
from server.generation.chat_request import ReasoningEffort
from server.generation.request import StructuredOutputs
from server.http_body.fields import (
    INEFFECTIVE,
    CacheSalt,
    Counted,
    Hint,
    LogitBias,
    MinP,
    NumLogprobs,
    Penalty,
    Priority,
    RepetitionPenalty,
    RequestBody,
    RequestId,
    Seed,
    Stop,
    Temperature,
    TokenCount,
    TokenId,
    TopK,
    TopP,
    Unsupported,
    check_unsupported,
)

Includable = Literal[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
]
ServiceTier = Literal["auto", "default", "flex", "scale", "priority"]


class ReasoningOptions(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How much the model reasons; no summary of the reasoning is written."""

    effort: ReasoningEffort | None = None
    summary: Hint = None
    generate_summary: Hint = None


class TextFormat(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`text.format`: the form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None

    def __post_init__(self) -> None:
        if self.type == "json_schema" and (self.schema is None or self.name is None):
            raise RequestError(
                "`text.format.name` and `text.format.schema` must be given when `text.format.type` is 'json_schema'.",
                param="text.format",
            )


class TextOptions(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`text`: the form of the answer; `verbosity` has no effect."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponsesRequest(RequestBody, kw_only=True, forbid_unknown_fields=True):
    """An input to answer, possibly after an earlier response."""

    input: str | Annotated[list[InputItem], Meta(min_length=1)]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = True
    background: bool | None = False
    stream: bool | None = False
    include: list[Includable] | None = None
    metadata: dict[str, str] | None = None

    max_output_tokens: TokenCount | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logit_bias: dict[int, LogitBias] | None = None
    skip_special_tokens: bool = True
    top_logprobs: NumLogprobs | None = 0
    truncation: Literal["auto", "disabled"] | None = "disabled"
    cache_salt: CacheSalt | None = None

    text: TextOptions | None = None
    structured_outputs: StructuredOutputs | None = None
    reasoning: ReasoningOptions | None = None
    include_reasoning: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None

    tools: list[dict[str, Any]] | None = None
    """Converted by `server.apis.responses.tools`; the response repeats them as they were given."""
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] = "auto"
    parallel_tool_calls: bool | None = True
    max_tool_calls: int | None = None

    request_id: RequestId | None = None
    """The id of the response."""
    enable_response_messages: bool = False
    """Whether the response repeats prompt and output as text and tokens."""

    service_tier: ServiceTier = "auto"
    user: str | None = None
    prompt: Any = None
    session_id: Hint = None
    prompt_cache_key: Hint = None
    prompt_cache_retention: Hint = None
    safety_identifier: Hint = None
    stream_options: Hint = None
    mm_payload: Hint = None
    return_mm_kwargs: Hint = None

    kv_transfer_params: dict[str, Any] | None = None
    """As in chat."""
    watermarking: Annotated[bool | None, INEFFECTIVE] = None
    priority: Annotated[Priority, INEFFECTIVE] = 0
    ec_transfer_params: Annotated[dict[str, Any] | None, INEFFECTIVE] = None
    vllm_xargs: Annotated[dict[str, str | int | float | list[str | int | float]] | None, INEFFECTIVE] = None
    media_io_kwargs: Unsupported = None
    previous_input_messages: Unsupported = None
    conversation: Unsupported = None

    def __post_init__(self) -> None:
        check_unsupported(self)
        if self.prompt is not None:
            raise RequestError("prompt template is not supported", param="prompt")
        if self.background and not self.store:
            raise RequestError("background can only be used when `store` is true", param="background")
        if self.structured_outputs is not None and self.text is not None and self.text.format is not None:
            raise RequestError("Cannot specify both structured_outputs and text.format", param="structured_outputs")

    def counted(self) -> Iterator[Counted]:
        yield Counted("max_messages", "input", len(self.items))
        yield Counted("max_tools", "tools", len(self.tools or ()))

    @property
    def items(self) -> list[InputItem]:
        """The input; a text is a message of the user."""
        return [InputItem(role="user", content=self.input)] if isinstance(self.input, str) else self.input

    @property
    def num_logprobs(self) -> int | None:
        """Candidates to report per token of the text; None reports nothing."""
        return (self.top_logprobs or 0) if "message.output_text.logprobs" in (self.include or ()) else None
