"""What a renderer takes beside the messages or the text, and what it returns."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt as the engine takes it."""

    token_ids: list[int]
    text: str | None
    """The text that was tokenized, before any truncation; None where the client sent token ids."""


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """How a conversation becomes a prompt; the names are the request's."""

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    chat_template: str | None = None
    """Only taken with `--trust-request-chat-template`."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    add_special_tokens: bool = False
    """Chat templates write the special tokens themselves."""
    truncate_prompt_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How a plain prompt is tokenized; the names are the request's."""

    add_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    """Keep this many tokens, the last ones; -1 keeps what leaves room for one output token."""
