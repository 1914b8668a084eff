"""A tokenizer with one token per byte and some special tokens, for grammars with tiny models."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

EOS = 256
VOCAB_SIZE = 300
"""Larger than the number of the tokenizer's tokens, as in most real models."""


def build_byte_tokenizer() -> Tokenizer:
    """Ids 0-255 are bytes, 256 ends the sequence, 257 is a second special token."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode  # an import of seconds

    vocabulary = {character: byte for byte, character in bytes_to_unicode().items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>"), AddedToken("<other>")])
    return tokenizer


def save_byte_tokenizer(folder: Path) -> Path:
    build_byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder
