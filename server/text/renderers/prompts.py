"""The prompts and options that a renderer takes, and the rendered prompts that it returns."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from server.terms.types import PromptInputs


@dataclass(frozen=True)
class EmbedsPrompt:
    """A prompt of embeddings that the client has computed."""

    embeds: str
    """A tensor file in base64 (`server.text.renderers.embeds.prompt_embeds`)."""


Prompt = str | list[int] | EmbedsPrompt
"""A completion's prompt: text, token ids or embeddings."""


class HeldBytes(Protocol):
    """Counts the bytes that a request holds."""

    def add_bytes(self, num_bytes: int) -> None:
        """Adds bytes. Raises RequestError if all requests together hold too many bytes."""

    def remove_bytes(self, num_bytes: int) -> None:
        """Subtracts bytes that the request no longer holds."""


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt in the form that the engine accepts."""

    token_ids: list[int]
    """One id per token. At positions that `inputs.embeds` fills, the id has no meaning."""
    text: str | None
    """The text before truncation. None if the client sent token ids or embeddings."""
    inputs: PromptInputs | None = None
    """The embeddings or images of the prompt. None for text alone."""

    @property
    def known_token_ids(self) -> list[int]:
        """The token ids. Empty if the prompt consists of embeddings."""
        return [] if self.inputs is not None and self.inputs.embeds is not None else self.token_ids


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """How a conversation is rendered. The fields have the same names as in requests."""

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    add_special_tokens: bool = False
    """False by default, because chat templates write the special tokens themselves."""
    truncate_prompt_tokens: int | None = None
    """As in `TextOptions`."""


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How a plain prompt is tokenized. The fields have the same names as in requests."""

    add_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    """The number of last tokens to keep, among them the special tokens at the beginning.

    -1 keeps as many tokens as leave room for one output token.
    """
