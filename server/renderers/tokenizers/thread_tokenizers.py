"""Keeps one tokenizer per thread and encodes with the fastest method that each supports."""

import threading

from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from server.renderers.tokenizers.copies import copy_tokenizer


class ThreadTokenizers:
    """Gives each thread its own copy: encoding in two threads at once fails with "Already borrowed"."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """The calling thread uses `tokenizer` itself."""
        self._tokenizer = tokenizer
        self._of_thread = threading.local()
        self._of_thread.tokenizer = tokenizer
        tokenizer.truncation_side = "left"

    def get(self) -> PreTrainedTokenizerBase:
        """The calling thread's copy, made by the first call."""
        if not hasattr(self._of_thread, "tokenizer"):
            self._of_thread.tokenizer = copy_tokenizer(self._tokenizer)
            self._of_thread.tokenizer.truncation_side = "left"
        return self._of_thread.tokenizer

    def encode(self, text: str, *, add_special_tokens: bool, limit: int | None = None) -> list[int]:
        """The text's tokens; with a limit, about that many of the last ones plus begin- and end-of-text
        tokens.

        Raises:
            UnicodeEncodeError: the text holds a lone surrogate.
        """
        text.encode()
        tokenizer = self.get()
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
