"""What a renderer asks of a tokenizer; one implementation for each kind of tokenizer file."""

from collections.abc import Mapping
from typing import Any, Protocol

from server.renderers.detokenizer import Decode


class Tokenizer(Protocol):
    """Tokenizers are not thread-safe: `encode` and `decode` work with a copy that belongs to the calling thread."""

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id."""

    @property
    def eos_token_id(self) -> int | None:
        """The end-of-sequence token."""

    @property
    def max_token_chars(self) -> int:
        """Characters of the longest token."""

    @property
    def added_tokens(self) -> Mapping[int, str]:
        """Control tokens and others that are written as they stand."""

    def encode(self, text: str, *, add_special_tokens: bool, limit: int | None = None) -> list[int]:
        """The text's tokens; with a limit about that many of the last ones, begin- and end-of-text tokens kept.

        Raises:
            UnicodeEncodeError: the text holds a lone surrogate.
        """

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """The text of a whole sequence; the ids are known to be tokens."""

    def loop_decoder(self, *, skip_special_tokens: bool) -> Decode:
        """Decodes the few last tokens of an output again and again, on the event loop."""

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes that one token adds to a text; on the event loop."""

    def info(self) -> dict[str, Any]:
        """The configuration, as JSON takes it."""

    def warm_up(self) -> None:
        """Makes the calling thread's copy, which may hold the interpreter for a tenth of a second."""
