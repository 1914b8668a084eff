"""Spares vLLM's search for a processor's chat template the loading of a tokenizer that it already has.

For a model without a processor, transformers' search ends with the tokenizer, which it loads from its files.
vLLM searches when it warms up its chat template, after the engine is ready.
"""

import functools
import sys
from types import SimpleNamespace
from typing import Any

from startup.hooks.left_out import applies
from startup.hooks.of_vllm import CHAT_TEMPLATE, PROCESSOR_LOADER, PROCESSOR_LOOKUP
from startup.imports.finder import after_import


def reuse_tokenizer() -> None:
    """From now on, the search ends with the tokenizer that it was called with."""
    if applies(PROCESSOR_LOOKUP):
        after_import(CHAT_TEMPLATE.module, _replace_search)


def _replace_search(module: Any) -> None:
    search = CHAT_TEMPLATE.get(module)

    @functools.wraps(search)
    def search_with_tokenizer(tokenizer: Any, **options: Any) -> Any:
        processors: Any = sys.modules.get(PROCESSOR_LOADER.module)
        if processors is None:
            return search(tokenizer, **options)
        loader = PROCESSOR_LOADER.get(processors)
        PROCESSOR_LOADER.replace(processors, SimpleNamespace(from_pretrained=lambda *args, **kwargs: tokenizer))
        try:
            return search(tokenizer, **options)
        finally:
            PROCESSOR_LOADER.replace(processors, loader)

    CHAT_TEMPLATE.replace(module, search_with_tokenizer)
