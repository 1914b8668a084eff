"""Delays loading the tokenizer of vLLM's engine until the first request with structured output."""

import functools
from collections.abc import Callable
from typing import Any, Final

from startup.hooks.left_out import applies
from startup.hooks.of_vllm import LATE_TOKENIZER, OUTPUT_MANAGER, OUTPUT_TOKENIZER
from startup.imports.finder import after_import

_ATTRIBUTE: Final = "tokenizer"


def load_tokenizer_late() -> None:
    """From now on, the engine's manager of structured output loads its tokenizer when it is used."""
    if applies(LATE_TOKENIZER):
        after_import(OUTPUT_MANAGER.module, _replace_tokenizer)


def _replace_tokenizer(module: Any) -> None:
    load = OUTPUT_TOKENIZER.get(module)
    manager = OUTPUT_MANAGER.get(module)
    if hasattr(manager, _ATTRIBUTE):
        raise AttributeError(f"{manager.__name__} has an attribute {_ATTRIBUTE} of its own")
    OUTPUT_TOKENIZER.replace(module, functools.wraps(load)(functools.partial(_Loading, load)))
    setattr(manager, _ATTRIBUTE, _LateAttribute())


class _Loading:
    """A call that was not made yet."""

    def __init__(self, load: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.make = functools.partial(load, *args, **kwargs)


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
            value = vars(instance)[_ATTRIBUTE] = value.make()
        return value

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)[_ATTRIBUTE] = value
