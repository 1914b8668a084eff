"""Reads xAI's tokenizer file, `tokenizer.tok.json`: the vocabulary of a byte-level BPE for tiktoken."""

from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from server.renderers.tokenizers.kind import GROK2_FILE, find_grok2_file
from server.renderers.tokenizers.loading import TokenizerLoadError

EOS = "<|eos|>"

_CONTROL_TOKENS = {
    "<|pad|>",
    "<|separator|>",
    EOS,
    *(f"<|reserved_{i}|>" for i in range(3, 128)),
    *(f"<|control{i}|>" for i in range(1, 705)),
}
"""Special tokens that are recognized in a text; others are ordinary text, unless the file allows them."""

_WORD_SPLIT_V1 = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""The meaning of `"word_split": "V1"`: contractions, words, single digits, punctuation, lines, spaces."""


class Grok2Vocabulary(NamedTuple):
    """The file's content."""

    regular: dict[bytes, int]
    """Bytes -> token id, which is also the rank of the merge."""
    special: dict[str, int]
    recognized: frozenset[str]
    """The special tokens that are recognized in a text."""
    word_pattern: str


def read_grok2_file(path: Path) -> Grok2Vocabulary:
    """Reads the vocabulary in a folder, or in a file.

    Raises:
        TokenizerLoadError: the file is missing or broken.
    """
    file = find_grok2_file(path)
    if file is None:
        raise TokenizerLoadError(f"no tokenizer at {path}: there is no {GROK2_FILE}")
    try:
        content = msgspec.json.decode(file.read_bytes(), type=_File)
        return _to_vocabulary(content)
    except (OSError, ValueError, msgspec.DecodeError) as err:
        raise TokenizerLoadError(f"cannot load the tokenizer in {file}: {err}") from err


_Bytes = list[Annotated[int, Meta(ge=0, le=255)]]


class _Token(msgspec.Struct, gc=False):
    """Not tracked by the garbage collector: with it, reading 131,072 of them takes three times as long."""

    token: Annotated[int, Meta(ge=0)]
    content: _Bytes = msgspec.field(name="bytes")


class _File(msgspec.Struct):
    regular_tokens: list[_Token]
    word_split: str
    special_tokens: list[_Token] = []
    pat_str: str | None = None
    vocab_size: int | None = None
    default_allowed_special: list[_Bytes] | None = None


def _to_vocabulary(content: _File) -> Grok2Vocabulary:
    if content.word_split != "V1":
        raise ValueError(f"word_split must be 'V1', got {content.word_split!r}")
    regular = {bytes(token.content): token.token for token in content.regular_tokens}
    special = {bytes(token.content).decode(): token.token for token in content.special_tokens}
    _check_ids(content, {*regular.values(), *special.values()})
    if missing := [byte for byte in range(256) if bytes([byte]) not in regular]:
        raise ValueError(f"regular_tokens must hold every single byte, but {missing[0]:#04x} is missing")
    allowed = {bytes(text).decode() for text in content.default_allowed_special or ()}
    recognized = special.keys() & (allowed | _CONTROL_TOKENS)
    return Grok2Vocabulary(regular, special, frozenset(recognized), content.pat_str or _WORD_SPLIT_V1)


def _check_ids(content: _File, token_ids: set[int]) -> None:
    num_tokens = len(content.regular_tokens) + len(content.special_tokens)
    if len(token_ids) != num_tokens:
        raise ValueError(f"{num_tokens - len(token_ids)} of {num_tokens} tokens have the id or bytes of another token")
    size = max(token_ids) + 1
    if content.vocab_size not in (None, size):
        raise ValueError(f"vocab_size is {content.vocab_size}, but the highest token id is {size - 1}")
