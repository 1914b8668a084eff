"""Prompts and options for renderers, and rendered prompts. Renders plain prompts, and checks their length."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from base.errors import RequestError
from server.terms.types import PromptInputs, TensorData
from server.text.renderers.prompt_embeds import EmbedsLimits, safe_load_prompt_embeds
from server.text.renderers.tokenizers.tokenizer import Cut, Tokenizer

_PROMPTS_PER_CALL: Final = 32


@dataclass(frozen=True)
class EmbedsPrompt:
    """A prompt of embeddings that the client has computed."""

    embeds: str
    """A tensor file in base64 (`server.text.renderers.prompt_embeds`)."""


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


@dataclass(frozen=True)
class ProcessedImages:
    """One processed image, or several that were processed together, as tensors for the model."""

    tensors: dict[str, TensorData]
    placeholders: tuple[str, ...]
    """For each image, the text that replaces its image token in the prompt."""

    @property
    def num_bytes(self) -> int:
        num_tensor_bytes = sum(len(tensor.data) for tensor in self.tensors.values())
        return num_tensor_bytes + sum(map(len, self.placeholders))


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


class PlainPrompts:
    """Renders plain prompts, on any thread."""

    max_model_len: int | None = None
    """The most tokens of a prompt and its output together. None until the engine has loaded the model."""
    embeds_limits: EmbedsLimits | None = None
    """The shape and type for `prompt_embeds`. None if the server accepts no embeddings."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def render_all(self, prompts: Sequence[Prompt], options: TextOptions) -> list[RenderedPrompt]:
        """Renders prompts one by one. Raises the errors of `render`."""
        return [self.render(prompt, options) for prompt in prompts]

    def render(self, prompt: Prompt, options: TextOptions) -> RenderedPrompt:
        """Tokenizes a plain text, checks token ids against the vocabulary, or loads embeddings.

        Raises:
            RequestError: the prompt is empty, too long, or holds an id outside the vocabulary.
        """
        if isinstance(prompt, EmbedsPrompt):
            return self._load_embeds(prompt, options)
        if isinstance(prompt, str):
            return self.tokenize(prompt, options, param="prompt")
        check_token_ids(prompt, vocab_size=self._tokenizer.vocab_size, param="prompt")
        return RenderedPrompt(self.keep_tokens(prompt, options, param="prompt"), text=None)

    def _load_embeds(self, prompt: EmbedsPrompt, options: TextOptions) -> RenderedPrompt:
        if self.embeds_limits is None:
            raise RequestError(
                "`prompt_embeds` are only accepted when the server runs with --enable-prompt-embeds",
                param="prompt_embeds",
            )
        rows = safe_load_prompt_embeds(prompt.embeds, self.embeds_limits, truncate_to=self.token_limit(options))
        return RenderedPrompt([0] * rows.shape[0], text=None, inputs=PromptInputs(embeds=rows))

    def tokenize(self, text: str, options: ChatOptions | TextOptions, *, param: str) -> RenderedPrompt:
        """Tokenizes a text, or the text of a conversation. Raises the same RequestErrors as `render`."""
        limit = self.token_limit(options)
        if limit is None:
            self.check_length(text)
        check_unicode(text, param)
        cut = None if limit is None else Cut(limit, "left")
        token_ids = self._tokenizer.encode(text, add_special_tokens=options.add_special_tokens, cut=cut)
        return RenderedPrompt(self.keep_tokens(token_ids, options, param=param), text)

    def keep_tokens(self, token_ids: list[int], options: ChatOptions | TextOptions, *, param: str) -> list[int]:
        """Truncates a prompt. Raises RequestError if no token remains."""
        limit = self.token_limit(options)
        kept = token_ids if limit is None else Cut(limit, "left").apply(token_ids)
        if not kept:
            raise RequestError(f"{param} has no tokens", param=param)
        return kept

    def token_limit(self, options: ChatOptions | TextOptions) -> int | None:
        """Returns how many prompt tokens to keep, or None to keep all of them.

        A request's -1 keeps as many tokens as leave room for one output token.
        """
        asked, most = options.truncate_prompt_tokens, self.max_model_len
        if asked is None or most is None:
            return None if asked == -1 else asked
        if asked > most:
            raise RequestError(
                f"truncate_prompt_tokens must be at most the model's {most} tokens, got {asked}",
                param="truncate_prompt_tokens",
            )
        return asked if asked >= 0 else most - 1

    def check_length(self, text: str) -> None:
        """Raises RequestError for a text that cannot fit into the model's context."""
        if (most := self.max_model_len) is not None:
            check_text_length(text, max_model_len=most, max_token_chars=self._tokenizer.max_token_chars)


def split_prompts(prompts: Sequence[Prompt]) -> list[Sequence[Prompt]]:
    """Divides at least one prompt among calls in the pool.

    Several texts share a call. Embeddings are large, so each prompt of embeddings has its own call.
    """
    size = 1 if isinstance(prompts[0], EmbedsPrompt) else _PROMPTS_PER_CALL
    return [prompts[begin : begin + size] for begin in range(0, len(prompts), size)]


def check_text_length(text: str, *, max_model_len: int, max_token_chars: int) -> None:
    """Raises RequestError for a text that is too long in any tokenization.

    Without this check, a thread might spend seconds on tokenizing the text.
    """
    if len(text) > (most_chars := max_model_len * max_token_chars):
        raise RequestError(
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains {len(text)} "
            f"characters (more than {most_chars} characters, which is the upper bound for {max_model_len} input "
            f"tokens). Please reduce the length of the input prompt. (parameter=input_text, value={len(text)})",
            param="input_text",
        )


def check_unicode(text: str, param: str) -> None:
    """Raises RequestError for half of a surrogate pair, which JSON can express but UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as err:
        raise RequestError(f"{param} is not valid Unicode: it holds a lone surrogate", param=param) from err


def check_token_ids(token_ids: Collection[int], *, vocab_size: int, param: str) -> None:
    """Raises RequestError if an id is outside the vocabulary."""
    bad = next((token_id for token_id in token_ids if not 0 <= token_id < vocab_size), None)
    if bad is not None:
        raise RequestError(f"Token id {bad} is out of vocabulary range [0, {vocab_size}) (`{param}`).", param=param)
