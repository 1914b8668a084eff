"""Saves a tiny tokenizer in xAI's format: only `tokenizer.tok.json`."""

import json
from pathlib import Path
from typing import Any

import tiktoken

WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|pad|>", "<|separator|>", "<|eos|>", "<|reserved_3|>", "<|control1|>", "<|control704|>", "<|hidden|>"]
"""The last one is not recognized in texts."""

_CORPUS = (
    b"Human: the quick brown fox Assistant: the dog 's is over the System: hello hello world "
    + "Größe, naïve 你好 世界 😀 Быстрая лиса".encode()
) * 3
_NUM_MERGES = 120


def save_grok2(path: Path, **changes: Any) -> Path:
    """`changes` replace members of the file; None removes a member."""
    path.mkdir(parents=True)
    content = {key: value for key, value in (tok_file() | changes).items() if value is not None}
    (path / "tokenizer.tok.json").write_text(json.dumps(content))
    return path


def tok_file() -> dict[str, Any]:
    """The file's content; special tokens have the lowest ids, as in Grok-2."""
    regular = [bytes([byte]) for byte in range(256)] + _merges()
    return {
        "regular_tokens": [_token(text, len(SPECIAL) + i) for i, text in enumerate(regular)],
        "special_tokens": [_token(text.encode(), i) for i, text in enumerate(SPECIAL)],
        "word_split": "V1",
        "vocab_size": len(regular) + len(SPECIAL),
    }


def reference() -> tiktoken.Encoding:
    """tiktoken's own tokenizer with the same vocabulary."""
    content = tok_file()
    return tiktoken.Encoding(
        "reference",
        pat_str=WORD_PATTERN,
        mergeable_ranks={bytes(token["bytes"]): token["token"] for token in content["regular_tokens"]},
        special_tokens={bytes(token["bytes"]).decode(): token["token"] for token in content["special_tokens"]},
        explicit_n_vocab=content["vocab_size"],
    )


def _token(text: bytes, token_id: int) -> dict[str, Any]:
    return {"bytes": list(text), "token": token_id}


def _merges() -> list[bytes]:
    """The pairs that byte-pair encoding merges within words of the corpus, most frequent first."""
    words = [[bytes([byte]) for byte in word] for word in _CORPUS.replace(b" ", b"\x00 ").split(b"\x00")]
    merges: list[bytes] = []
    while len(merges) < _NUM_MERGES:
        counts: dict[tuple[bytes, bytes], int] = {}
        for word in words:
            for pair in zip(word, word[1:], strict=False):
                counts[pair] = counts.get(pair, 0) + 1
        if not counts:
            break
        pair = max(counts, key=lambda pair: (counts[pair], pair))
        if (joined := b"".join(pair)) not in merges:
            merges.append(joined)
        words = [_join(word, pair) for word in words]
    return merges


def _join(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    joined: list[bytes] = []
    for part in word:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined
