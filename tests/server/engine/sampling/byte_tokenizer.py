"""A tokenizer with one token per byte and some special tokens, for grammars with tiny models."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

EOS = 256
VOCAB_SIZE = 300
"""Larger than the number of the tokenizer's tokens, as in most real models."""


def build_byte_tokenizer() -> Tokenizer:
    """Ids 0-255 are bytes, 256 ends the sequence, 257 is a second special token."""
    tokenizer = Tokenizer(models.BPE(vocab=_byte_vocab(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>"), AddedToken("<other>")])
    return tokenizer


def save_byte_tokenizer(folder: Path) -> Path:
    """Writes tokenizer.json into the folder."""
    build_byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def _byte_vocab() -> dict[str, int]:
    """GPT-2's printable characters for bytes, in order of the bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    stand_in = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    return {stand_in[b]: b for b in range(256)}
