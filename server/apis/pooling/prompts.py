"""Tokenizes the prompts of pooling requests in the renderer pool: texts, token ids and pairs of texts."""

from typing import Any

from base.errors import PromptTooLongError, RequestError
from server.apis.pooling.request import InputFields, PoolingFields
from server.terms.types import EngineInfo
from server.text.renderers.prompts import ChatOptions, check_text_length, check_token_ids, check_unicode
from server.text.renderers.renderer import Renderer
from server.text.renderers.tokenizers.tokenizer import Cut, Encoded


class PromptReader:
    """Reads the prompts of one request, in one thread of the renderer pool.

    Every method raises RequestError for a prompt that is empty, too long or not supported by the model.
    """

    def __init__(self, renderer: Renderer, request: PoolingFields, info: EngineInfo) -> None:
        """Raises RequestError if `truncate_prompt_tokens` exceeds the model's limit."""
        limit, most = request.truncate_prompt_tokens, info.max_model_len
        if limit is not None and limit > most:
            raise RequestError(
                "truncate_prompt_tokens value is greater than max_model_len. Please request a smaller truncation size.",
                param="truncate_prompt_tokens",
            )
        self.has_template = renderer.config.chat_template is not None
        """Whether the operator has given a chat template."""
        self._renderer = renderer
        self._tokenizer = renderer.tokenizer
        self._max_tokens = most
        self._vocab_size = min(renderer.tokenizer.vocab_size, info.vocab_size)
        self._does_lower_case = info.pooling is not None and info.pooling.does_lower_case
        self._add_special_tokens = not isinstance(request, InputFields) or request.add_special_tokens is not False
        self._cut = None if limit is None else Cut(most if limit == -1 else limit, request.truncation_side or "right")

    def read(self, prompt: str | list[int], *, param: str = "input") -> Encoded:
        """Tokenizes a text, or checks token ids."""
        if isinstance(prompt, str):
            return self._encode(prompt, param, add_special_tokens=self._add_special_tokens)
        check_token_ids(prompt, vocab_size=self._vocab_size, param=param)
        return self._checked(Encoded(prompt if self._cut is None else self._cut.apply(prompt)), param)

    def read_by_template(self, first: str, second: str, template_kwargs: dict[str, Any]) -> Encoded:
        """Renders a query and a document with the operator's chat template."""
        messages = [{"role": "query", "content": first}, {"role": "document", "content": second}]
        options = ChatOptions(add_generation_prompt=False, chat_template_kwargs=template_kwargs)
        text = self._renderer.render_messages(messages, options)
        assert isinstance(text, str), "it writes the operator's template"
        return self._encode(text, "messages", add_special_tokens=True)

    def read_pair(self, first: str, second: str, *, param: str) -> Encoded:
        """Tokenizes a pair, with the tokenizer's special tokens between the two texts."""
        self._check_text(first + second, param)
        texts = self._as_cased(first), self._as_cased(second)
        return self._checked(self._tokenizer.encode_pair(*texts, cut=self._cut), param)

    def cut_text(self, text: str, num_tokens: int, *, param: str) -> str:
        """Cuts a text after `num_tokens` tokens. 0 returns the whole text."""
        if not num_tokens:
            return text
        if num_tokens >= self._max_tokens:
            most = self._max_tokens
            raise RequestError(f"{param} ({num_tokens}) must be less than max_model_len ({most}).", param=param)
        check_unicode(text, param)
        return self._tokenizer.cut_text(text, num_tokens)

    def _encode(self, text: str, param: str, *, add_special_tokens: bool) -> Encoded:
        self._check_text(text, param)
        token_ids = self._tokenizer.encode(self._as_cased(text), add_special_tokens=add_special_tokens, cut=self._cut)
        return self._checked(Encoded(token_ids), param)

    def _as_cased(self, text: str) -> str:
        return text.lower() if self._does_lower_case else text

    def _check_text(self, text: str, param: str) -> None:
        """Rejects a text too long for any tokenization to fit. Tokenizing the text could take seconds."""
        check_unicode(text, param)
        if self._cut is None:
            most_chars = self._tokenizer.max_token_chars
            check_text_length(text, max_model_len=self._max_tokens, max_token_chars=most_chars)

    def _checked(self, prompt: Encoded, param: str) -> Encoded:
        num_tokens, most = len(prompt.token_ids), self._max_tokens
        if num_tokens > most:
            raise PromptTooLongError(num_tokens, most)
        if not num_tokens:
            raise RequestError(f"`{param}` has no tokens", param=param)
        return prompt
