"""Prompts and options that a renderer accepts, and the rendered prompt that it returns."""

from dataclasses import dataclass, field
from typing import Any, Literal

from server.errors import RequestError
from server.types import PromptInputs


@dataclass(frozen=True)
class EmbedsPrompt:
    """A prompt given as embeddings that the client computed."""

    embeds: str | bytes | memoryview
    """Base64 of a tensor file (`server.renderers.embeds.prompt_embeds`)."""


TruncationSide = Literal["left", "right"]
"""Where a prompt is cut: `right` keeps its first tokens, `left` the last ones.

None keeps the last ones too, and the special tokens at the beginning.
"""

Prompt = str | list[int] | EmbedsPrompt
"""A completion's prompt: text, token ids or embeddings."""


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt in the form that the engine accepts."""

    token_ids: list[int]
    """One per token; ids of positions that `inputs.embeds` fills have no meaning."""
    text: str | None
    """The text that was tokenized, before any truncation; None if the client sent token ids or embeddings."""
    inputs: PromptInputs | None = None
    """The embeddings or images of the prompt."""

    @property
    def known_token_ids(self) -> list[int]:
        """The token ids; empty if the prompt consists of embeddings."""
        return [] if self.inputs is not None and self.inputs.embeds is not None else self.token_ids


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """How a conversation is rendered; the fields have the request's names."""

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    chat_template: str | None = None
    """Always rejected: `--engine vllm` alone renders templates of requests."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    add_special_tokens: bool = False
    """Chat templates write the special tokens themselves."""
    truncate_prompt_tokens: int | None = None
    truncation_side: TruncationSide | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    """Only accepted with `--trust-request-mm-kwargs`."""

    def __post_init__(self) -> None:
        if self.chat_template is not None:
            raise RequestError(
                "a chat_template in the request is only accepted by --engine vllm with --trust-request-chat-template",
                param="chat_template",
            )
        if self.continue_final_message and self.add_generation_prompt:
            raise RequestError(
                "continue_final_message and add_generation_prompt are not compatible", param="add_generation_prompt"
            )


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How a plain prompt is tokenized; the fields have the request's names."""

    add_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    """Keep this many tokens; -1 keeps as many as leave room for one output token."""
    truncation_side: TruncationSide | None = None
