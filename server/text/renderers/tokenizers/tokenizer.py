"""A Hugging Face tokenizer, as transformers loads it. All threads share one object.

The tokenizers library can encode and decode in several threads at once, but raises "Already borrowed" if
truncation or padding is changed meanwhile. So both are switched off after loading, and this module cuts
prompts itself. A tokenizer class with its own encoder, for example in Python, may change its state, so a lock
protects it.
"""

import json
import re
from functools import lru_cache, partial
from threading import Lock
from typing import Any, Literal, NamedTuple

from tokenizers import Tokenizer as Backend
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from server.text.renderers.detokenizer import Decode
from server.text.renderers.tokenizers.loading import measure_vocabulary

_BYTE_OF_CHARACTER = {character: byte for byte, character in bytes_to_unicode().items()}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_NUM_CACHED = 4096
"""The number of tokens whose bytes are cached. Most texts use fewer. All tokens would take 5 to 25 MiB."""


Side = Literal["left", "right"]
"""Where tokens are cut off. `right` keeps the first tokens, `left` keeps the last tokens."""


class Encoded(NamedTuple):
    """The tokens of one text, or of two texts with special tokens between them."""

    token_ids: list[int]
    token_type_ids: list[int] | None = None
    """For each token, the text to which it belongs (0 or 1). None if the model takes no token types."""


class Cut(NamedTuple):
    """How many tokens to keep, and where others are cut off. Special tokens count, but are never cut off."""

    limit: int
    side: Side = "right"

    def apply(self, ids: list[int]) -> list[int]:
        if self.side == "right":
            return ids[: self.limit]
        begin = max(0, len(ids) - self.limit)
        return ids[begin:]


class Tokenizer:
    """All methods may run on any thread, except `loop_decoder` and `token_bytes`, which need the event loop.

    `encode` and `encode_pair` raise UnicodeEncodeError for a text with half of a surrogate pair.
    """

    def __init__(self, loaded: PreTrainedTokenizerBase) -> None:
        self.loaded = loaded
        self._backend = _plain_backend(loaded)
        """The library's tokenizer. None if the class has its own encoder, which is used under `_lock`."""
        self._lock = Lock()
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
        self._has_types = "token_type_ids" in loaded.model_input_names
        self.eos_token_id: int | None = loaded.eos_token_id
        self.vocab_size, self.max_token_chars = measure_vocabulary(loaded)
        self.added_tokens = {token_id: str(token) for token_id, token in loaded.added_tokens_decoder.items()}
        """Token id -> text, for control tokens and other tokens that are matched literally."""
        self.decoder_steps = _decoder_steps(getattr(loaded, "backend_tokenizer", None))
        self._anchor_ids: list[int] = loaded.encode("a", add_special_tokens=False)
        self._anchor = self.loop_decoder(skip_special_tokens=False)(self._anchor_ids)
        self.token_bytes = lru_cache(_NUM_CACHED)(self._find_bytes)

    def encode(self, text: str, *, add_special_tokens: bool, cut: Cut | None = None) -> list[int]:
        """Returns the text's tokens. A cut on the left keeps the begin-of-text token."""
        return self._encode(text, None, add_special_tokens=add_special_tokens, cut=cut).token_ids

    def encode_pair(self, text: str, pair: str, *, cut: Cut | None = None) -> Encoded:
        """Returns the tokens of two texts with special tokens. `cut` first shortens the longer text."""
        return self._encode(text, pair, add_special_tokens=True, cut=cut, has_types=self._has_types)

    def _encode(
        self, text: str, pair: str | None, *, add_special_tokens: bool, cut: Cut | None, has_types: bool = False
    ) -> Encoded:
        for part in (text, pair or ""):
            part.encode()
        if self._backend is None:
            encoded = self._encode_by_class(text, pair, add_special_tokens, cut)
        else:
            # Without offsets, this takes 0.6 of the time of `encode`, and holds the GIL for less of it.
            texts = [(text, pair) if pair else text]
            found = self._backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)[0]
            encoded = Encoded(found.ids, found.type_ids if has_types else None)
            if cut is not None and len(encoded.token_ids) > cut.limit:
                _cut_texts(encoded, found.sequence_ids, cut)
        if cut is None:
            return encoded
        # Nothing was cut if not even the special tokens fit.
        types = encoded.token_type_ids
        return Encoded(cut.apply(encoded.token_ids), None if types is None else cut.apply(types))

    def _encode_by_class(self, text: str, pair: str | None, add_special_tokens: bool, cut: Cut | None) -> Encoded:
        with self._lock:
            self.loaded.truncation_side = "right" if cut is None else cut.side
            encoding = self.loaded(
                text,
                text_pair=pair,
                add_special_tokens=add_special_tokens,
                truncation=cut is not None,
                max_length=None if cut is None else cut.limit,
                verbose=False,
            )
        return Encoded(encoding["input_ids"], encoding.get("token_type_ids"))

    def cut_text(self, text: str, num_tokens: int) -> str:
        """Returns the text of the first `num_tokens` tokens. Needs a fast tokenizer, for the offsets."""
        while True:
            with self._lock:
                encoding = self.loaded(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            offsets = encoding["offset_mapping"]
            if len(offsets) <= num_tokens:
                return text
            # The rest may be tokenized differently than in the longer text, but it gets shorter each time.
            text = text[: min(offsets[num_tokens - 1][1], len(text) - 1)]

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Returns the text of a whole sequence. The caller has checked the ids."""
        text: str = self.loaded.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def loop_decoder(self, *, skip_special_tokens: bool) -> Decode:
        """Returns a decoder. If the tokenizer is fast, the decoder bypasses transformers."""
        decode = getattr(self.loaded, "backend_tokenizer", self.loaded).decode
        return partial(decode, skip_special_tokens=skip_special_tokens)

    def _find_bytes(self, token_id: int) -> bytes:
        """Returns a token's bytes from a table, or else the bytes that the token adds to the text `a`."""
        if (content := self.added_tokens.get(token_id)) is not None:
            return content.encode()
        backend: Backend | None = getattr(self.loaded, "backend_tokenizer", None)
        token = backend.id_to_token(token_id) if backend else None
        if token is not None and "ByteLevel" in self.decoder_steps:
            return _byte_level(token)
        if token is not None and "ByteFallback" in self.decoder_steps and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(match[1])
        decode = self.loop_decoder(skip_special_tokens=False)
        return decode([*self._anchor_ids, token_id]).removeprefix(self._anchor).encode()


def _byte_level(token: str) -> bytes:
    """Maps characters to bytes with GPT-2's table. A token with any other character is plain text."""
    if all(character in _BYTE_OF_CHARACTER for character in token):
        return bytes(_BYTE_OF_CHARACTER[character] for character in token)
    return token.encode()


def _decoder_steps(backend: Backend | None) -> frozenset[str]:
    if backend is None or backend.decoder is None:
        return frozenset()
    state: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    return frozenset(step["type"] for step in state.get("decoders", [state]))


def _plain_backend(tokenizer: PreTrainedTokenizerBase) -> Backend | None:
    """Returns the tokenizers library's object. None if the tokenizer's class has its own encoder."""
    kind = type(tokenizer)
    is_plain = issubclass(kind, TokenizersBackend) and all(
        getattr(kind, name) is getattr(TokenizersBackend, name) for name in ("encode", "_encode_plus")
    )
    return tokenizer.backend_tokenizer if is_plain else None


def _cut_texts(encoded: Encoded, text_of: list[int | None], cut: Cut) -> None:
    """Cuts one or two texts, as transformers does with `longest_first`.

    Special tokens belong to neither text, and are kept. If they alone exceed the limit, nothing is cut.
    """
    room = cut.limit - text_of.count(None)
    if room < 0:
        return
    shorter, longer = sorted((0, 1), key=text_of.count)
    num_shorter = min(text_of.count(shorter), room // 2)
    for text, num_kept in ((shorter, num_shorter), (longer, room - num_shorter)):
        num_cut = text_of.count(text) - num_kept
        if num_cut:
            begin = text_of.index(text) + (num_kept if cut.side == "right" else 0)
            for row in (text_of, encoded.token_ids, encoded.token_type_ids or []):
                del row[begin : begin + num_cut]
