"""Avoids loading tokenizers that are not needed yet, or that are loaded already.

vLLM's engine loads one for structured output before it is ready. For a model without a processor,
transformers' search for a processor ends with the tokenizer, which it loads again from its files. vLLM
searches when it warms up its chat template, after the engine is ready.
"""

import functools
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final

from startup.hooks.hook import Hook, Name, Text
from startup.imports.finder import after_import, wrap_after_import

_OUTPUT: Final = "vllm.v1.structured_output"
_OUTPUT_TOKENIZER: Final = Name(_OUTPUT, "cached_tokenizer_from_config")
_OUTPUT_MANAGER: Final = Name(_OUTPUT, "StructuredOutputManager")
LATE_TOKENIZER: Final = Hook(
    "late tokenizer of the engine",
    does="loads the tokenizer for structured output when a request needs it",
    without="the engine loads a tokenizer before it is ready",
    needs=(
        _OUTPUT_TOKENIZER,
        _OUTPUT_MANAGER,
        Text(
            (_OUTPUT_MANAGER.module,),
            r"self\.tokenizer = cached_tokenizer_from_config\(",
            "its assignment to self.tokenizer",
        ),
    ),
    not_in={(0, 29): "vLLM 0.29 wraps this tokenizer at once"},
)

CHAT_TEMPLATE: Final = Name(
    "vllm.renderers.hf",
    "_try_get_processor_chat_template",
    ("tokenizer", "revision", "code_revision", "trust_remote_code"),
)
_PROCESSOR_LOADER: Final = Name("transformers.models.auto.processing_auto", "AutoTokenizer")
PROCESSOR_LOOKUP: Final = Hook(
    "search for a processor",
    does="gives it the tokenizer that is loaded",
    without="the tokenizer of a model without a processor is loaded once more",
    needs=(CHAT_TEMPLATE, _PROCESSOR_LOADER),
)

_ATTRIBUTE: Final = "tokenizer"


def load_tokenizer_late() -> None:
    """From now on, the engine's manager of structured output loads its tokenizer when it is used."""
    if LATE_TOKENIZER.applies:
        after_import(_OUTPUT_MANAGER.module, _replace_tokenizer)


def _replace_tokenizer(module: Any) -> None:
    load = _OUTPUT_TOKENIZER.get(module)
    manager = _OUTPUT_MANAGER.get(module)
    if hasattr(manager, _ATTRIBUTE):
        raise AttributeError(f"{manager.__name__} has an attribute {_ATTRIBUTE} of its own")
    _OUTPUT_TOKENIZER.replace(module, functools.wraps(load)(functools.partial(_Loading, load)))
    setattr(manager, _ATTRIBUTE, _LateAttribute())


class _Loading(functools.partial[Any]):
    """A call that was not made yet."""


class _LateAttribute:
    """Makes the call that was assigned to the attribute when the attribute is read."""

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        try:
            value = vars(instance)[_ATTRIBUTE]
        except KeyError:
            raise AttributeError(_ATTRIBUTE) from None
        if isinstance(value, _Loading):
            value = vars(instance)[_ATTRIBUTE] = value()
        return value

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)[_ATTRIBUTE] = value


def reuse_tokenizer() -> None:
    """From now on, the search ends with the tokenizer that it was called with."""
    if PROCESSOR_LOOKUP.applies:
        wrap_after_import(CHAT_TEMPLATE, _with_loaded_tokenizer)


def _with_loaded_tokenizer(search: Callable[..., Any]) -> Callable[..., Any]:
    def search_with_tokenizer(tokenizer: Any, **options: Any) -> Any:
        processors: Any = sys.modules.get(_PROCESSOR_LOADER.module)
        if processors is None:
            return search(tokenizer, **options)
        loader = _PROCESSOR_LOADER.get(processors)
        _PROCESSOR_LOADER.replace(processors, SimpleNamespace(from_pretrained=lambda *args, **kwargs: tokenizer))
        try:
            return search(tokenizer, **options)
        finally:
            _PROCESSOR_LOADER.replace(processors, loader)

    return search_with_tokenizer
