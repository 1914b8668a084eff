"""Tokenizes the prompts of pooling requests: texts, token ids, conversations and pairs.

Blocks; runs in the renderer pool.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from server.apis.pooling.request import InputFields, Message, Truncatable
from server.errors import RequestError
from server.renderers.base import BaseRenderer
from server.renderers.prompt_limits import check_token_ids
from server.renderers.prompts import ChatOptions
from server.renderers.tokenizers.tokenizer import Cut, PairTokenizer, Side
from server.types import EngineInfo


class PooledPrompt(NamedTuple):
    """A tokenized prompt."""

    token_ids: list[int]
    token_type_ids: list[int] | None = None
    """The text of a pair that each token belongs to."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How one request's prompts are tokenized."""

    max_model_len: int
    vocab_size: int
    does_lower_case: bool
    add_special_tokens: bool | None
    """None adds them to texts but not to conversations."""
    limit: int | None
    """How many tokens are kept; None keeps all."""
    side: Side
    """The side on which the others are cut off."""
    pad_to: int = 0
    """Shorter prompts are padded to this length."""

    @classmethod
    def from_request(cls, request: Truncatable, info: EngineInfo, *, max_input_len: int | None = None) -> "ReadOptions":
        """The options of one request.

        Args:
            request: the request.
            info: the properties of the engine's model.
            max_input_len: most tokens of a prompt, if that is not the model's context.

        Raises:
            RequestError: `truncate_prompt_tokens` exceeds what the model accepts.
        """
        limit, most = request.truncate_prompt_tokens, max_input_len or info.max_model_len
        if limit is not None and limit > most:
            raise RequestError(
                "truncate_prompt_tokens value is greater than max_model_len. Please request a smaller truncation size.",
                param="truncate_prompt_tokens",
            )
        return cls(
            max_model_len=most,
            vocab_size=info.vocab_size,
            does_lower_case=info.pooling is not None and info.pooling.does_lower_case,
            add_special_tokens=request.add_special_tokens if isinstance(request, InputFields) else None,
            limit=most if limit == -1 else limit,
            side=request.truncation_side or "right",
            pad_to=min(most, info.max_model_len) if request.padding == "max_length" else 0,
        )


class PromptReader:
    """Reads the prompts of one request, in one thread of the renderer pool.

    Every method raises RequestError for a prompt that is empty, too long or unsupported by the model.
    """

    def __init__(self, renderer: BaseRenderer, options: ReadOptions) -> None:
        self._renderer = renderer
        self._tokenizer = renderer.tokenizer
        self._options = options

    def read(self, prompt: str | list[int], *, param: str = "input") -> PooledPrompt:
        """Reads a text, or token ids."""
        if isinstance(prompt, str):
            return self._encode(prompt, param, add_special_tokens=self._options.add_special_tokens is not False)
        check_token_ids(prompt, vocab_size=min(self._renderer.vocab_size, self._options.vocab_size), param=param)
        return self._checked(PooledPrompt(self._sliced(prompt)), param)

    def read_conversation(self, messages: list[Message], options: ChatOptions) -> PooledPrompt:
        """Reads messages by the model's chat template."""
        return self._read_messages(messages, options, add_special_tokens=self._options.add_special_tokens is True)

    def read_by_template(self, first: str, second: str, template_kwargs: dict[str, Any]) -> PooledPrompt:
        """Reads a pair as a conversation of a query and a document, by the operator's chat template."""
        messages = [{"role": "query", "content": first}, {"role": "document", "content": second}]
        options = ChatOptions(add_generation_prompt=False, chat_template_kwargs=template_kwargs)
        return self._read_messages(messages, options, add_special_tokens=True)

    def read_pair(self, first: str, second: str, *, param: str) -> PooledPrompt:
        """Reads a pair with the tokenizer's special tokens between the two texts."""
        self._check_text(first + second, param)
        encoded = self._pair_tokenizer(param).encode_pair(
            *self._as_cased(first, second), add_special_tokens=True, cut=self._cut
        )
        return self._checked(PooledPrompt(encoded.token_ids, encoded.token_type_ids), param)

    def cut_text(self, text: str, num_tokens: int, *, param: str) -> str:
        """The first `num_tokens` tokens of a text; 0 returns it unchanged."""
        if not num_tokens:
            return text
        if num_tokens >= self._options.max_model_len:
            most = self._options.max_model_len
            raise RequestError(f"{param} ({num_tokens}) must be less than max_model_len ({most}).", param=param)
        self._check_unicode(text, param)
        return self._pair_tokenizer(param).cut_text(text, num_tokens)

    def _read_messages(
        self, messages: list[Message], options: ChatOptions, *, add_special_tokens: bool
    ) -> PooledPrompt:
        rendered = self._renderer.render_messages(messages, options)
        if isinstance(rendered, str):
            return self._encode(rendered, "messages", add_special_tokens=add_special_tokens)
        return self._checked(PooledPrompt(self._sliced(rendered)), "messages")

    def _encode(self, text: str, param: str, *, add_special_tokens: bool) -> PooledPrompt:
        self._check_text(text, param)
        (text,) = self._as_cased(text)
        if self._options.limit is not None and isinstance(self._tokenizer, PairTokenizer):
            encoded = self._tokenizer.encode_pair(text, None, add_special_tokens=add_special_tokens, cut=self._cut)
            return self._checked(PooledPrompt(encoded.token_ids), param)
        token_ids = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return self._checked(PooledPrompt(self._sliced(token_ids)), param)

    def _pair_tokenizer(self, param: str) -> PairTokenizer:
        if not isinstance(self._tokenizer, PairTokenizer):
            raise RequestError("this model's tokenizer does not support pairs of texts", param=param)
        return self._tokenizer

    @property
    def _cut(self) -> Cut | None:
        return None if self._options.limit is None else Cut(self._options.limit, self._options.side)

    def _as_cased(self, *texts: str) -> tuple[str, ...]:
        return tuple(text.lower() for text in texts) if self._options.does_lower_case else texts

    def _sliced(self, token_ids: list[int]) -> list[int]:
        return token_ids if self._cut is None else self._cut.apply(token_ids)

    def _check_text(self, text: str, param: str) -> None:
        """Rejects a text that is too long however it is tokenized; tokenizing it could take seconds."""
        self._check_unicode(text, param)
        most = self._options.max_model_len
        if self._options.limit is None and len(text) > most * self._tokenizer.max_token_chars:
            raise RequestError(
                f"This model's maximum context length is {most} tokens (--max-model-len), but `{param}` holds "
                f"{len(text)} characters. Please reduce the length of the input prompt.",
                param=param,
            )

    def _check_unicode(self, text: str, param: str) -> None:
        try:
            text.encode()
        except UnicodeEncodeError as err:
            raise RequestError(f"`{param}` is not valid Unicode: it holds a lone surrogate", param=param) from err

    def _checked(self, prompt: PooledPrompt, param: str) -> PooledPrompt:
        num_tokens, most = len(prompt.token_ids), self._options.max_model_len
        if num_tokens > most:
            raise RequestError(
                f"This model's maximum context length is {most} tokens (--max-model-len), but `{param}` holds "
                f"{num_tokens} tokens. Please reduce the length of the input prompt, or give truncate_prompt_tokens.",
                param=param,
            )
        if not num_tokens:
            raise RequestError(f"`{param}` has no tokens", param=param)
        return prompt if num_tokens >= self._options.pad_to else self._padded(prompt)

    def _padded(self, prompt: PooledPrompt) -> PooledPrompt:
        missing = self._options.pad_to - len(prompt.token_ids)
        pad_token_id = self._pair_tokenizer("padding").pad_token_id
        if pad_token_id is None:
            raise RequestError("`padding` needs a tokenizer with a padding token", param="padding")
        types = prompt.token_type_ids
        return PooledPrompt(
            [*prompt.token_ids, *[pad_token_id] * missing], None if types is None else [*types, *[0] * missing]
        )
