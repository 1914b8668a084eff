"""vLLM's module that loads tokenizers. The fake vLLM has none."""

from functools import lru_cache
from typing import Any


def get_tokenizer(name: str) -> Any:
    raise OSError(f"no tokenizer for {name}")


cached_get_tokenizer = lru_cache(get_tokenizer)
cached_resolve_tokenizer_args = lru_cache(lambda name: name)


def cached_tokenizer_from_config(model_config: Any, **kwargs: Any) -> Any:
    return cached_get_tokenizer(model_config.tokenizer)
