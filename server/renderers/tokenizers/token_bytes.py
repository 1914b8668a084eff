"""The exact bytes that each token of a vocabulary adds to a text; a token may be a part of a character."""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from server.renderers.detokenizer import Decode

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_BYTE_OF_CHARACTER = {character: byte for byte, character in bytes_to_unicode().items()}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_NUM_CACHED = 4096
"""Texts consist mostly of this many tokens; a whole vocabulary would take 5 to 25 MiB."""


class TokenBytes:
    """Computes a token's bytes, and caches those of recent tokens; used on the event loop only."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", decode: Decode, added: Mapping[int, str]) -> None:
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


def _decoder_steps(backend: "Tokenizer | None") -> frozenset[str]:
    if backend is None or backend.decoder is None:
        return frozenset()
    state: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    return frozenset(step["type"] for step in state.get("decoders", [state]))
