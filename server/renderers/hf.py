"""Renders with a Hugging Face tokenizer and its chat template."""

from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

from server.config import ModelFiles, RendererConfig
from server.errors import RequestError
from server.renderers.base import BaseRenderer
from server.renderers.chat_template import check_chat_template, resolve_chat_template, safe_apply_chat_template
from server.renderers.content_format import ContentFormat, detect_content_format
from server.renderers.detokenizer import AddedTokensJoined, Decode, DecodeWindow, IncrementalDetokenizer
from server.renderers.messages import to_conversation
from server.renderers.prompts import ChatOptions, RenderedPrompt, TextOptions
from server.renderers.stop_strings import StopScanner
from server.renderers.thread_tokenizers import ThreadTokenizers
from server.renderers.token_bytes import TokenBytes
from server.renderers.tokenizer_loading import load_tokenizer


class HfRenderer(BaseRenderer):
    """The tokenizer that was loaded stays with the event loop; each thread of the pool has a copy of its own.

    Build it on the main thread: loading may import torch.
    """

    def __init__(self, files: ModelFiles, config: RendererConfig, *, executor: Executor | None = None) -> None:
        if config.chat_template is not None:
            check_chat_template(config.chat_template)
        self._tokenizer = load_tokenizer(files.tokenizer_path, config.trust_remote_code)
        self._added = {token_id: str(token) for token_id, token in self._tokenizer.added_tokens_decoder.items()}
        vocab: dict[str, int] = self._tokenizer.get_vocab()
        self._vocab_size: int = max([*vocab.values(), *self._added]) + 1
        self._max_token_chars = max(map(len, vocab))
        self._bytes_of = TokenBytes(self._tokenizer, self._decoder(skip_special_tokens=False), self._added)
        self._tokenizers = ThreadTokenizers(self._tokenizer)
        super().__init__(files, config, executor=executor)

    def render_chat(self, messages: list[dict[str, Any]], options: ChatOptions) -> RenderedPrompt:
        tokenizer = self._tokenizers.get()
        template = resolve_chat_template(tokenizer, self._given_template(options), options.tools or None)
        text = safe_apply_chat_template(
            tokenizer,
            to_conversation(messages, self._content_format(template)),
            template=template,
            options=options,
            template_kwargs=self.config.default_chat_template_kwargs | options.chat_template_kwargs,
        )
        return self._tokenized(text, options, param="messages")

    def render_text(self, prompt: str | list[int], options: TextOptions) -> RenderedPrompt:
        if isinstance(prompt, str):
            return self._tokenized(prompt, options, param="prompt")
        self._check_ids(prompt, param="prompt")
        return RenderedPrompt(_last(prompt, self._token_limit(options), "prompt"), text=None)

    def detokenize(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        self._check_ids(token_ids, param="tokens")
        text: str = self._tokenizers.get().decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def encode_words(self, texts: list[str]) -> list[list[int]]:
        encode = partial(self._tokenizers.encode, add_special_tokens=False)
        sequences: list[list[int]] = []
        for word in texts:
            bare, spaced = encode(word.lstrip()), encode(" " + word.lstrip())
            if not bare:
                raise RequestError(f"bad_words must have at least one token each, got {word!r}", param="bad_words")
            sequences.append(bare)
            if len(spaced) == len(bare) and spaced[0] != bare[0]:
                sequences.append(spaced)
        return sequences

    def token_text(self, token_id: int) -> str:
        return self._bytes_of[token_id].decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes_of[token_id]

    def create_detokenizer(  # noqa: PLR0913 - see BaseRenderer
        self,
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        stop: Sequence[str] = (),
        include_stop_str_in_output: bool = False,
        min_tokens: int = 0,
        prompt_token_ids: Sequence[int] = (),
    ) -> IncrementalDetokenizer:
        decode = self._decoder(skip_special_tokens)
        if skip_special_tokens or spaces_between_special_tokens:
            window = DecodeWindow(decode, prompt_token_ids)
        else:
            window = AddedTokensJoined(decode, prompt_token_ids, self._added)
        scanner = StopScanner(stop, include_stop_str_in_output) if stop else None
        return IncrementalDetokenizer(window, scanner, min_tokens)

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def eos_token_id(self) -> int | None:
        token_id: int | None = self._tokenizer.eos_token_id
        return token_id

    @property
    def chat_template(self) -> str | None:
        own = self._tokenizer.chat_template
        return self.config.chat_template or (own.get("default") if isinstance(own, dict) else own)

    def tokenizer_info(self) -> dict[str, Any]:
        paths = ("vocab_file", "merges_file", "tokenizer_file", "name_or_path")
        settings = {key: _to_json(value) for key, value in self._tokenizer.init_kwargs.items() if key not in paths}
        template = {"chat_template": self.chat_template} if self.chat_template else {}
        return {**settings, "tokenizer_class": type(self._tokenizer).__name__, **template}

    def warm_up(self) -> None:
        if self.chat_template is not None:
            detect_content_format(self.chat_template)
        self._executor.submit(self._tokenizers.get).result()

    def _given_template(self, options: ChatOptions) -> str | None:
        if options.chat_template is None:
            return self.config.chat_template
        if not self.config.trust_request_chat_template:
            raise RequestError(
                "a chat_template in the request is only taken when the server runs with --trust-request-chat-template",
                param="chat_template",
            )
        return options.chat_template

    def _content_format(self, template: str) -> ContentFormat:
        wanted = self.config.chat_template_content_format
        return detect_content_format(template) if wanted == "auto" else wanted

    def _tokenized(self, text: str, options: ChatOptions | TextOptions, *, param: str) -> RenderedPrompt:
        limit = self._token_limit(options)
        if limit is None:
            self._check_length(text, param)
        try:
            token_ids = self._tokenizers.encode(text, add_special_tokens=options.add_special_tokens, limit=limit)
        except UnicodeEncodeError as err:
            raise RequestError(f"{param} is not valid Unicode: it holds a lone surrogate", param=param) from err
        return RenderedPrompt(_last(token_ids, limit, param), text)

    def _token_limit(self, options: ChatOptions | TextOptions) -> int | None:
        wanted, limit = options.truncate_prompt_tokens, self.max_model_len
        if wanted is None or limit is None:
            return wanted if wanted != -1 else None
        if wanted > limit:
            raise RequestError(
                f"truncate_prompt_tokens must be at most the model's {limit} tokens, got {wanted}",
                param="truncate_prompt_tokens",
            )
        return wanted if wanted >= 0 else limit - 1

    def _check_length(self, text: str, param: str) -> None:
        """Refuse what cannot fit however it is tokenized, before a thread is busy with it for seconds."""
        limit = self.max_model_len
        if limit is not None and len(text) > limit * self._max_token_chars:
            raise RequestError(
                f"This model's maximum context length is {limit} tokens, but {param} holds {len(text)} characters",
                param=param,
            )

    def _check_ids(self, token_ids: list[int], *, param: str) -> None:
        if token_ids and (min(token_ids) < 0 or max(token_ids) >= self._vocab_size):
            bad = next(token_id for token_id in token_ids if not 0 <= token_id < self._vocab_size)
            raise RequestError(f"token ids must be from 0 to {self._vocab_size - 1}, got {bad}", param=param)

    def _decoder(self, skip_special_tokens: bool) -> Decode:
        """Decodes on the event loop, without transformers' layer where the tokenizer is a fast one."""
        decode = getattr(self._tokenizer, "backend_tokenizer", self._tokenizer).decode
        return partial(decode, skip_special_tokens=skip_special_tokens)


def _last(token_ids: list[int], limit: int | None, param: str) -> list[int]:
    kept = token_ids if limit is None else token_ids[max(0, len(token_ids) - limit) :]
    if not kept:
        raise RequestError(f"{param} has no tokens", param=param)
    return kept


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
