"""What a renderer takes beside the messages or the text, and what it returns."""

from dataclasses import dataclass, field
from typing import Any

from server.types import PromptInputs


@dataclass(frozen=True)
class EmbedsPrompt:
    """Embeddings that the client computed, in the place of a text."""

    embeds: str | bytes | memoryview
    """Base64 of a tensor file (`server.renderers.embeds.prompt_embeds`)."""


Prompt = str | list[int] | EmbedsPrompt
"""What a completion continues: text, token ids or embeddings."""


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt as the engine takes it."""

    token_ids: list[int]
    """One per token; where `inputs` holds its row, the id stands for nothing."""
    text: str | None
    """The text that was tokenized, before any truncation; None where the client sent token ids or embeddings."""
    inputs: PromptInputs | None = None
    """What stands in the prompt beside token ids."""

    @property
    def known_token_ids(self) -> list[int]:
        """None where the ids stand for embeddings."""
        return [] if self.inputs is not None and self.inputs.embeds is not None else self.token_ids


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
    mm_processor_kwargs: dict[str, Any] | None = None
    """Only taken with `--trust-request-mm-kwargs`."""


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How a plain prompt is tokenized; the names are the request's."""

    add_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    """Keep this many tokens, the last ones; -1 keeps what leaves room for one output token."""
