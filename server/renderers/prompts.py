"""Prompts and options that a renderer accepts, checks of both, and the rendered prompt that it returns."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

from base.errors import RequestError
from server.renderers.tokenizers.tokenizer import Side
from server.types import PromptInputs


@dataclass(frozen=True)
class EmbedsPrompt:
    """A prompt given as embeddings that the client computed."""

    embeds: str | bytes | memoryview
    """Base64 of a tensor file (`server.renderers.embeds.prompt_embeds`)."""


Prompt = str | list[int] | EmbedsPrompt
"""A completion's prompt: text, token ids or embeddings."""


class HeldBytes(Protocol):
    """Counts the bytes that a request holds."""

    def add_bytes(self, num_bytes: int) -> None:
        """Raises RequestError if all requests together hold too many."""

    def remove_bytes(self, num_bytes: int) -> None:
        """Subtracts bytes that the request holds no more."""


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
    truncation_side: Side | None = None
    """None keeps the last tokens, and the special ones at the beginning."""

    def __post_init__(self) -> None:
        if self.chat_template is not None:
            raise RequestError(
                "a chat_template in the request is only accepted by --engine vllm with --trust-request-chat-template",
                param="chat_template",
            )


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How a plain prompt is tokenized; the fields have the request's names."""

    add_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    """Keep this many tokens; -1 keeps as many as leave room for one output token."""
    truncation_side: Side | None = None


def check_text_length(text: str, *, max_model_len: int, max_token_chars: int, param: str) -> None:
    """Rejects a text that cannot fit with any tokenization, before a thread spends seconds on tokenizing it.

    Raises:
        RequestError: the text is too long.
    """
    if len(text) > max_model_len * max_token_chars:
        raise RequestError(
            f"This model's maximum context length is {max_model_len} tokens (--max-model-len), but `{param}` holds "
            f"{len(text)} characters. Please reduce the length of the input prompt.",
            param=param,
        )


def check_unicode(text: str, param: str) -> None:
    """Raises RequestError for half a surrogate pair, which JSON can express and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as err:
        raise RequestError(f"{param} is not valid Unicode: it holds a lone surrogate", param=param) from err


def check_token_ids(token_ids: Collection[int], *, vocab_size: int, param: str) -> None:
    """Raises RequestError if an id is outside the vocabulary."""
    if token_ids and (min(token_ids) < 0 or max(token_ids) >= vocab_size):
        bad = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
        raise RequestError(f"Token id {bad} is out of vocabulary range [0, {vocab_size}) (`{param}`).", param=param)
