"""Pools of tokenizers."""

from typing import Any


def maybe_make_thread_pool(tokenizer: Any, copies: int = 1) -> Any:
    return tokenizer
