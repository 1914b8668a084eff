"""A Hugging Face tokenizer, as transformers loads it, with a copy for each thread.

Encoding in two threads at once fails with "Already borrowed". A copy shares the vocabulary: it takes 0.2 ms
and no memory instead of 0.1 s and megabytes. The steps of a fast tokenizer (normalizer, model, decoder, …)
are never changed here, and the tokenizers library locks them. Encoding changes only truncation and padding,
which each copy has for itself.
"""

import copy
import json
import re
import threading
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from server.renderers.detokenizer import Decode
from server.renderers.tokenizers.loading import load_tokenizer, measure_vocabulary
from server.renderers.tokenizers.tokenizer import Cut, Encoded

_FILES = ("vocab_file", "merges_file", "tokenizer_file", "name_or_path")
"""Settings that would show the server's folders."""

_BYTE_OF_CHARACTER = {character: byte for byte, character in bytes_to_unicode().items()}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_NUM_CACHED = 4096
"""Texts consist mostly of this many tokens; a whole vocabulary would take 5 to 25 MiB."""


class HfTokenizer:
    """Implements `Tokenizer`. Build it on the event loop's thread, which uses the loaded object itself."""

    def __init__(self, loaded: PreTrainedTokenizerBase) -> None:
        self.loaded = loaded
        self.added_tokens = {token_id: str(token) for token_id, token in loaded.added_tokens_decoder.items()}
        self.vocab_size, self.max_token_chars = measure_vocabulary(loaded)
        self.eos_token_id: int | None = loaded.eos_token_id
        self.pad_token_id: int | None = loaded.pad_token_id
        self._token_bytes = TokenBytes(loaded, self.loop_decoder(skip_special_tokens=False), self.added_tokens)
        loaded.truncation_side = "left"
        self._of_thread = threading.local()
        self._of_thread.tokenizer = loaded

    @classmethod
    def from_folder(cls, path: Path, *, trust_remote_code: bool = False) -> "HfTokenizer":
        """Loads the folder's tokenizer, which may import torch.

        Raises:
            TokenizerLoadError: the tokenizer is missing or broken.
        """
        return cls(load_tokenizer(path, trust_remote_code))

    @property
    def for_this_thread(self) -> PreTrainedTokenizerBase:
        """The calling thread's copy, made by the first call."""
        if not hasattr(self._of_thread, "tokenizer"):
            self._of_thread.tokenizer = copy_tokenizer(self.loaded)
            self._of_thread.tokenizer.truncation_side = "left"
        return self._of_thread.tokenizer

    def encode(self, text: str, *, add_special_tokens: bool, limit: int | None = None) -> list[int]:
        text.encode()
        tokenizer = self.for_this_thread
        if limit is None and _is_plain(tokenizer):
            return _encode_without_offsets(tokenizer, text, add_special_tokens)
        token_ids: list[int] = tokenizer.encode(
            text,
            add_special_tokens=add_special_tokens,
            truncation=limit is not None,
            max_length=limit,
            verbose=False,
        )
        return token_ids

    def encode_pair(self, text: str, pair: str | None, *, add_special_tokens: bool, cut: Cut | None = None) -> Encoded:
        """Of a pair, the longer text is cut first."""
        for part in (text, pair or ""):
            part.encode()
        tokenizer = self.for_this_thread
        side = tokenizer.truncation_side
        tokenizer.truncation_side = side if cut is None else cut.side
        try:
            encoding = tokenizer(
                text,
                text_pair=pair,
                add_special_tokens=add_special_tokens,
                truncation=cut is not None,
                max_length=None if cut is None else cut.limit,
                verbose=False,
            )
        finally:
            tokenizer.truncation_side = side
        token_ids: list[int] = encoding["input_ids"]
        types: list[int] | None = encoding.get("token_type_ids")
        if cut is None:
            return Encoded(token_ids, types)
        # transformers cuts nothing if only special tokens would fit.
        return Encoded(cut.apply(token_ids), None if types is None else cut.apply(types))

    def cut_text(self, text: str, num_tokens: int) -> str:
        """Needs a fast tokenizer, which returns offsets."""
        tokenizer = self.for_this_thread
        while True:
            encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            offsets = encoding["offset_mapping"]
            if len(offsets) <= num_tokens:
                return text
            # The remainder may tokenize differently than within the longer text, but gets shorter every time.
            text = text[: min(offsets[num_tokens - 1][1], len(text) - 1)]

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        text: str = self.for_this_thread.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def loop_decoder(self, *, skip_special_tokens: bool) -> Decode:
        """Bypasses transformers if the tokenizer is a fast one."""
        decode = getattr(self.loaded, "backend_tokenizer", self.loaded).decode
        return partial(decode, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        return self._token_bytes[token_id]

    def describe(self) -> dict[str, Any]:
        settings = {name: value for name, value in self.loaded.init_kwargs.items() if name not in _FILES}
        return {**_to_json(settings), "tokenizer_class": type(self.loaded).__name__}

    def pieces(self, token_ids: list[int]) -> list[str]:
        """Ids without a token, which a model's last layer may have, are empty texts."""
        pieces = self.for_this_thread.convert_ids_to_tokens(token_ids)
        return ["" if piece is None else piece for piece in pieces]

    def warm_up(self) -> None:
        _ = self.for_this_thread


class TokenBytes:
    """Computes a token's bytes, and caches those of recent tokens; used on the event loop only."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, decode: Decode, added: Mapping[int, str]) -> None:
        self._backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
        self._steps = _decoder_steps(self._backend)
        self._decode = decode
        self._anchor_ids = tokenizer.encode("a", add_special_tokens=False)
        self._anchor = decode(self._anchor_ids)
        self._added = added
        self._look_up_cached = lru_cache(_NUM_CACHED)(self._look_up)

    def __getitem__(self, token_id: int) -> bytes:
        return self._look_up_cached(token_id)

    def _look_up(self, token_id: int) -> bytes:
        """Without a table of bytes, a token's bytes are what it appends to an ordinary text."""
        if (content := self._added.get(token_id)) is not None:
            return content.encode()
        token = self._backend.id_to_token(token_id) if self._backend else None
        if token is not None and "ByteLevel" in self._steps:
            return _byte_level(token)
        if token is not None and "ByteFallback" in self._steps and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(match[1])
        return self._decode([*self._anchor_ids, token_id]).removeprefix(self._anchor).encode()


def _byte_level(token: str) -> bytes:
    """Maps characters to bytes with GPT-2's table; a token with any other character is plain text."""
    if all(character in _BYTE_OF_CHARACTER for character in token):
        return bytes(_BYTE_OF_CHARACTER[character] for character in token)
    return token.encode()


def _decoder_steps(backend: Tokenizer | None) -> frozenset[str]:
    if backend is None or backend.decoder is None:
        return frozenset()
    state: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    return frozenset(step["type"] for step in state.get("decoders", [state]))


def _to_json(value: Any) -> Any:
    """Settings as JSON: tokens as their text, other objects as Python shows them."""
    if isinstance(value, dict):
        return {str(name): _to_json(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(member) for member in value]
    return value if value is None or isinstance(value, str | int | float) else getattr(value, "content", str(value))


def _is_plain(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer's class inherits encoding by the tokenizers library."""
    kind = type(tokenizer)
    return issubclass(kind, TokenizersBackend) and all(
        getattr(kind, name) is getattr(TokenizersBackend, name) for name in ("encode", "_encode_plus")
    )


def _encode_without_offsets(tokenizer: TokenizersBackend, text: str, add_special_tokens: bool) -> list[int]:
    """Equals `encode` in 0.6 of its time, and builds no lists of offsets while holding the GIL."""
    backend = tokenizer.backend_tokenizer
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    token_ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
    return token_ids


_STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def copy_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy that another thread may use."""
    backend = getattr(tokenizer, "_tokenizer", None)
    memo = {id(backend): copy_backend(backend)} if isinstance(backend, Tokenizer) else {}
    return copy.deepcopy(tokenizer, memo)


def copy_backend(backend: Tokenizer) -> Tokenizer:
    """A tokenizer with the same steps; a deep copy if the added tokens would get other ids."""
    copied = Tokenizer(backend.model)
    for name in _STEPS:
        if (step := getattr(backend, name)) is not None:
            setattr(copied, name, step)
    added: dict[int, Any] = backend.get_added_tokens_decoder()
    copied.add_tokens([added[token_id] for token_id in sorted(added)])
    if _contents(copied.get_added_tokens_decoder()) != _contents(added):
        return copy.deepcopy(backend)
    copied.encode_special_tokens = backend.encode_special_tokens
    if backend.truncation is not None:
        copied.enable_truncation(**backend.truncation)
    if backend.padding is not None:
        copied.enable_padding(**backend.padding)
    return copied


def _contents(added: dict[int, Any]) -> dict[int, str]:
    return {token_id: str(token) for token_id, token in added.items()}
