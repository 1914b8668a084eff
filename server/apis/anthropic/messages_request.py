"""Requests to /v1/messages and /v1/messages/count_tokens.

As in vLLM, all other fields have no effect, such as `cache_control` and beta fields.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from base.errors import CodedRequestError, RequestError
from server.terms.http_body.request_body import CacheSalt, Counted, RequestBody, Temperature, Text, TopK, TopP

MIN_THINKING_TOKENS = 1024


class ImageSource(msgspec.Struct, kw_only=True):
    """An image in base64, or the URL of an image."""

    type: str | None = None
    media_type: str = "image/jpeg"
    data: str = ""
    url: str = ""

    @property
    def as_url(self) -> str:
        """The image as a URL. As in vLLM, a source of any type other than `url` counts as base64."""
        return self.url if self.type == "url" else f"data:{self.media_type};base64,{self.data}"


class ResultPart(msgspec.Struct, kw_only=True):
    """A part of a tool's result. Parts other than text, image and tool_reference have no effect."""

    type: str | None = None
    text: str | None = None
    source: ImageSource | None = None
    name: str | None = None
    tool_name: str | None = None


class ToolDefinition(msgspec.Struct, kw_only=True):
    """One member of `tools`."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    defer_loading: bool | None = None


_BLOCK_TYPES: Final = (
    *("text", "image", "tool_use", "tool_result", "tool_reference", "thinking", "redacted_thinking"),
    *("tool_addition", "tool_removal"),
)


class ContentBlock(msgspec.Struct, kw_only=True):
    """A part of a message. Its type decides which fields are used."""

    type: Annotated[str, Meta(extra_json_schema={"enum": [*_BLOCK_TYPES]})]
    text: str | None = None
    source: ImageSource | None = None
    id: str | None = None
    tool_use_id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    content: str | list[ResultPart] | None = None
    tool_name: str | None = None
    thinking: str | None = None

    def __post_init__(self) -> None:
        if self.type in ("tool_addition", "tool_removal"):
            raise RequestError(f"{self.type} blocks need `--engine vllm`.", param="messages")
        if self.type not in _BLOCK_TYPES:
            raise ValueError(f"Unsupported block type: '{self.type}', supported are {', '.join(_BLOCK_TYPES[:-2])}")


Content = str | list[ContentBlock]


class AnthropicMessage(msgspec.Struct, kw_only=True):
    """One turn of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: Content

    @property
    def blocks(self) -> list[ContentBlock]:
        """The content as blocks. A text becomes one block."""
        if isinstance(self.content, str):
            return [ContentBlock(type="text", text=self.content)]
        return self.content


class ToolChoice(msgspec.Struct, kw_only=True):
    """The tools that the model may or must call."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    def __post_init__(self) -> None:
        if self.type == "tool" and not self.name:
            raise RequestError("`tool_choice.name` is required when type is 'tool'.", param="tool_choice")


Effort = Literal["low", "medium", "high", "xhigh", "max"]


class JsonOutputFormat(msgspec.Struct, kw_only=True):
    """Requires the answer to be JSON that follows a schema."""

    type: Literal["json_schema"] = "json_schema"
    schema: dict[str, Any] | None = None


class OutputConfig(msgspec.Struct, kw_only=True):
    """How much the model thinks, and the form of the answer."""

    effort: Effort | None = None
    format: JsonOutputFormat | None = None


class ThinkingEnabled(msgspec.Struct, kw_only=True, tag_field="type", tag="enabled"):
    """Thinking with a limited number of tokens."""

    budget_tokens: Annotated[int, Meta(ge=MIN_THINKING_TOKENS)]


class ThinkingDisabled(msgspec.Struct, kw_only=True, tag_field="type", tag="disabled"):
    """No thinking, or as little thinking as the model supports."""


class ThinkingAdaptive(msgspec.Struct, kw_only=True, tag_field="type", tag="adaptive"):
    """Thinking of a length that the model chooses."""


Thinking = ThinkingEnabled | ThinkingDisabled | ThinkingAdaptive


class CountTokensRequest(RequestBody, kw_only=True):
    """A conversation whose prompt's tokens are counted."""

    model: Text
    messages: list[AnthropicMessage]
    system: Content | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    thread: Any = None
    """Set by Anthropic's SDK to continue a conversation on the server, which is not supported here."""

    def __post_init__(self) -> None:
        if self.thread is not None:
            raise CodedRequestError(
                "`thread` is not supported by this server. Leave it out and send the whole conversation.",
                param="thread",
                error_code="thread_unsupported_request",
            )
        self._check_results()

    def _check_results(self) -> None:
        call_ids: set[str | None] = set()
        for index, message in enumerate(self.messages):
            for block in message.blocks:
                if block.type == "tool_use":
                    call_ids.add(block.id)
                elif block.type == "tool_result" and block.tool_use_id not in call_ids:
                    raise RequestError(
                        f"`messages[{index}]` has the result of the tool call '{block.tool_use_id}', which no earlier "
                        "message has.",
                        param="messages",
                    )


class AnthropicRequest(CountTokensRequest, kw_only=True):
    """A conversation to continue."""

    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    stream: bool | None = False
    stop_sequences: list[Text] | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    cache_salt: CacheSalt | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        budget = self.thinking.budget_tokens if isinstance(self.thinking, ThinkingEnabled) else 0
        if budget >= self.max_tokens:
            raise RequestError(
                f"`thinking.budget_tokens` must be less than `max_tokens`: got {budget} and {self.max_tokens}.",
                param="thinking",
            )

    def counted(self) -> Iterator[Counted]:
        yield Counted("max_stop_strings", "stop_sequences", len(self.stop_sequences or ()))
