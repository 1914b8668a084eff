"""Requests to /v1/responses, with vLLM's fields, ranges and defaults."""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from base.errors import RequestError
from server.generation.generation_request import ReasoningEffort, SamplingFields
from server.terms.http_body.request_body import NumLogprobs, OutputLimit, Unsupported

ItemStatus = Literal["in_progress", "completed", "incomplete"]

_REQUIRED: Final = {
    "message": ("role", "content"),
    "reasoning": (),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
}
"""Type of an item -> the fields that it must have."""

_PART_TYPES: Final = ("input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text", "input_image")
_PART_KEYS: Final = {"refusal": "refusal", "input_image": "image_url"}
"""Type of a part -> the key of its content. All other parts have a `text`."""


class InputPart(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A part of a message, of a tool's output or of reasoning."""

    type: Annotated[str, Meta(extra_json_schema={"enum": [*_PART_TYPES]})]
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None

    def __post_init__(self) -> None:
        if self.type not in _PART_TYPES:
            raise ValueError(f"Unsupported content part type: '{self.type}', supported are {', '.join(_PART_TYPES)}")
        key = _PART_KEYS.get(self.type, "text")
        if getattr(self, key) is None:
            raise ValueError(f"A content part of type '{self.type}' needs `{key}`")

    @property
    def shown_text(self) -> str:
        """The text of the part. Empty for an image."""
        return (self.refusal if self.type == "refusal" else self.text) or ""


Content = str | list[InputPart]


class InputItem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A message, reasoning, a tool call or a tool's output. Fields of other types of items are ignored."""

    type: Annotated[str, Meta(extra_json_schema={"enum": [*_REQUIRED]})] = "message"
    status: ItemStatus | None = None

    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Content | None = None
    summary: list[InputPart] = []
    encrypted_content: str | None = None

    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | None = None
    output: Content | None = None

    def __post_init__(self) -> None:
        required = _REQUIRED.get(self.type)
        if required is None:
            raise ValueError(f"Unsupported input item type: '{self.type}'. `--engine vllm` has more types")
        for name in required:
            if getattr(self, name) is None:
                raise ValueError(f"An input item of type '{self.type}' needs `{name}`")
        if self.encrypted_content:
            raise ValueError("Encrypted content is not supported")


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
    """How much the model reasons. The server generates no summary of the reasoning."""

    effort: ReasoningEffort | None = None
    summary: Any = None
    generate_summary: Any = None


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


class ResponseTextConfig(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The member `text`: the form of the answer. `verbosity` has no effect."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class PromptCacheOptions(msgspec.Struct, kw_only=True):
    """Has no effect."""

    mode: Literal["implicit", "explicit"] = "implicit"
    ttl: Literal["30m"] = "30m"
    comparison_response_id: str | None = None


class ResponsesRequest(SamplingFields, kw_only=True):
    """An input to answer."""

    input: str | Annotated[list[InputItem], Meta(min_length=1)]
    instructions: str | None = None
    store: bool | None = True
    """Has no effect. The server stores no responses, as vLLM by default."""
    include: list[Includable] | None = None
    metadata: dict[str, str] | None = None

    max_output_tokens: OutputLimit | None = None
    top_logprobs: NumLogprobs | None = 0
    truncation: Literal["auto", "disabled"] | None = "disabled"

    text: ResponseTextConfig | None = None
    reasoning: ReasoningOptions | None = None
    include_reasoning: bool = True
    chat_template_kwargs: dict[str, Any] | None = None

    tools: list[dict[str, Any]] | None = None
    """The tools as the client wrote them, which the response repeats. `ResponseTools` converts them."""
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] = "auto"
    parallel_tool_calls: bool | None = True
    max_tool_calls: int | None = None

    service_tier: ServiceTier = "auto"
    user: str | None = None
    prompt: Any = None

    prompt_cache_key: str | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    safety_identifier: str | None = None
    """Has no effect, as the three before it. The response repeats them, as in vLLM."""

    background: Unsupported = False
    previous_response_id: Unsupported = None
    request_id: Unsupported = None
    enable_response_messages: Unsupported = False
    previous_input_messages: Unsupported = None
    conversation: Unsupported = None
    spaces_between_special_tokens: Unsupported = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt is not None:
            raise RequestError("prompt template is not supported", param="prompt")
        if self.structured_outputs is not None and self.text is not None and self.text.format is not None:
            raise RequestError("Cannot specify both structured_outputs and text.format", param="structured_outputs")
        if self.prompt_cache_retention == "in-memory":
            self.prompt_cache_retention = "in_memory"

    @property
    def items(self) -> list[InputItem]:
        """The input as items. A text becomes a message of the user."""
        if isinstance(self.input, str):
            return [InputItem(role="user", content=self.input)]
        return self.input

    @property
    def num_logprobs(self) -> int | None:
        """The number of candidates to report for each token of the text. None reports nothing."""
        return (self.top_logprobs or 0) if "message.output_text.logprobs" in (self.include or ()) else None
