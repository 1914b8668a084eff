"""The interface of tokenizers. Each kind of renderer has an implementation."""

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

from server.text.renderers.detokenizer import Decode

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
        return ids[: self.limit] if self.side == "right" else ids[max(0, len(ids) - self.limit) :]


class Tokenizer(Protocol):
    """All methods may run on any thread, except `loop_decoder` and `token_bytes`, which need the event loop.

    `encode` and `encode_pair` raise UnicodeEncodeError for a text with half of a surrogate pair.
    """

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id."""

    @property
    def eos_token_id(self) -> int | None:
        """The end-of-sequence token. None if the tokenizer has no such token."""

    @property
    def max_token_chars(self) -> int:
        """The number of characters of the longest token."""

    @property
    def added_tokens(self) -> Mapping[int, str]:
        """Token id -> text, for control tokens and other tokens that are matched literally."""

    def encode(self, text: str, *, add_special_tokens: bool, cut: Cut | None = None) -> list[int]:
        """Returns the text's tokens. A cut on the left keeps the begin-of-text token."""

    def encode_pair(self, text: str, pair: str, *, cut: Cut | None = None) -> Encoded:
        """Returns the tokens of two texts with special tokens. `cut` first shortens the longer text."""

    def cut_text(self, text: str, num_tokens: int) -> str:
        """Returns the text of the first `num_tokens` tokens."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Returns the text of a whole sequence. The caller has checked the ids."""

    def loop_decoder(self, *, skip_special_tokens: bool) -> Decode:
        """Returns a decoder that is called for every token of an output, so it is fast for a few tokens."""

    def token_bytes(self, token_id: int) -> bytes:
        """Returns the exact bytes that one token adds to a text."""
