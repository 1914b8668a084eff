"""What a renderer asks of a tokenizer; one implementation for each kind of tokenizer file."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from server.renderers.detokenizer import Decode
from server.renderers.pair_encoding import Cut, EncodedPair


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


@runtime_checkable
class PairTokenizer(Protocol):
    """What models that pool ask for besides; not every kind of tokenizer file has it."""

    def encode_pair(
        self, text: str, pair: str | None, *, add_special_tokens: bool, cut: Cut | None = None
    ) -> EncodedPair:
        """The tokens of a text, or of two with special tokens between them, and which text each is of.

        Raises:
            UnicodeEncodeError: a text holds a lone surrogate.
        """

    def cut_text(self, text: str, num_tokens: int) -> str:
        """The text's beginning of so many tokens."""
