"""Tokenizes one text or a pair for a pooling model: token types, and truncation on either side."""

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

Side = Literal["left", "right"]


class EncodedPair(NamedTuple):
    """Tokens of one text, or of two with special tokens between them."""

    token_ids: list[int]
    token_type_ids: list[int] | None
    """The text that each token belongs to, 0 or 1; None if the model does not take token types."""


class Cut(NamedTuple):
    """How many tokens are kept, and on which side the others are cut off.

    Special tokens count, but are kept.
    """

    limit: int
    side: Side = "right"

    def apply(self, ids: list[int]) -> list[int]:
        """The ids to keep."""
        return ids[: self.limit] if self.side == "right" else ids[max(0, len(ids) - self.limit) :]


def encode_pair(
    tokenizer: "PreTrainedTokenizerBase",
    text: str,
    pair: str | None,
    *,
    add_special_tokens: bool,
    cut: Cut | None = None,
) -> EncodedPair:
    """Tokenizes a text or a pair; of a pair, the longer text is cut first.

    The tokenizer must be the calling thread's own.

    Raises:
        UnicodeEncodeError: a text holds a lone surrogate.
    """
    for part in (text, pair or ""):
        part.encode()
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
        return EncodedPair(token_ids, types)
    # transformers cuts nothing if only special tokens would fit.
    return EncodedPair(cut.apply(token_ids), None if types is None else cut.apply(types))


def cut_text(tokenizer: "PreTrainedTokenizerBase", text: str, num_tokens: int) -> str:
    """The beginning of the text, of `num_tokens` tokens; needs a fast tokenizer, which returns offsets."""
    while True:
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
            "offset_mapping"
        ]
        if len(offsets) <= num_tokens:
            return text
        # The remainder may tokenize differently than within the longer text, but it gets shorter every time.
        text = text[: min(offsets[num_tokens - 1][1], len(text) - 1)]
