"""vLLM's module that loads image processors. The fake vLLM has none."""

from functools import lru_cache
from typing import Any


def get_processor(name: str) -> Any:
    raise OSError(f"no processor for {name}")


cached_get_processor = lru_cache(get_processor)
