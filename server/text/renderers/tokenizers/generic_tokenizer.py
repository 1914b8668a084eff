"""Loads a tokenizer.json into transformers' generic class, in half of the time of `from_pretrained`.

transformers parses the file twice, the second time in Python for the few added tokens, and then copies the
tokenizer. The result is the same: a test compares it with AutoTokenizer's.
"""

from pathlib import Path
from typing import Any

import msgspec
from tokenizers import AddedToken, Tokenizer
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from server.text.model_files.tokenizer_files import read_json_object

_LEGACY_FILES = ("special_tokens_map.json", "added_tokens.json")
"""With one of these, transformers merges several sources of added tokens."""


class _TokenizerFile(msgspec.Struct):
    """The needed part of tokenizer.json; decoding skips the rest, megabytes of vocabulary."""

    added_tokens: list[dict[str, Any]]


def load_generic_tokenizer(path: Path) -> TokenizersBackend:
    """The tokenizer in the folder; raises what transformers raises."""
    options = {} if _has_other_added_tokens(path) else {"added_tokens_decoder": _added_tokens(path)}
    tokenizer: TokenizersBackend = _WithoutCopy.from_pretrained(path, **options)
    tokenizer.__class__ = TokenizersBackend
    return tokenizer


class _WithoutCopy(TokenizersBackend):  # type: ignore[misc]
    @classmethod
    def convert_to_native_format(cls, **kwargs: Any) -> dict[str, Any]:
        converted: dict[str, Any] = super().convert_to_native_format(**kwargs)
        if (backend := converted.get("tokenizer_object")) is not None:
            converted["tokenizer_object"] = _Shared(backend)
        return converted


class _Shared:
    """Stands for a backend tokenizer that transformers would copy: its deep copy is the tokenizer itself."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend

    def __deepcopy__(self, memo: dict[int, Any]) -> Tokenizer:
        return self._backend


def _has_other_added_tokens(path: Path) -> bool:
    config = read_json_object(path / "tokenizer_config.json")
    return "added_tokens_decoder" in config or any((path / name).exists() for name in _LEGACY_FILES)


def _added_tokens(path: Path) -> dict[int, AddedToken]:
    file = msgspec.json.decode((path / "tokenizer.json").read_bytes(), type=_TokenizerFile)
    return {token.pop("id"): AddedToken(**token) for token in file.added_tokens}
