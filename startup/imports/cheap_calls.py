"""Speeds up functions that torch and vLLM call many times during a start."""

import copy
import logging
import logging.config
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any, Final

from startup.hook import Hook, Name
from startup.imports.finder import after_import, place_variant

_GET_MODULE: Final = Name("torch.library", "inspect.getmodule", ("object",))
_GET_SOURCE: Final = Name("torch._library.utils", "get_source", ("stacklevel",))
CHEAP_CALLS: Final = Hook(
    "cheap calls",
    does="records torch's operators, configures logs, and copies tokenizers, in less time",
    without="these take a tenth of the import time, and vLLM parses a vocabulary three more times",
    gain_in=("CPU, eager, later", "stand-in, compiled, later"),
    needs=(_GET_SOURCE, _GET_MODULE, Name("logging", "Manager._clear_cache", ())),
)
_COPY: Final = Name("tokenizers", "Tokenizer.__deepcopy__")
CHEAP_COPIES: Final = CHEAP_CALLS.part(
    Name("tokenizers", "Tokenizer.model"),
    Name("tokenizers", "Tokenizer.get_added_tokens_decoder"),
    Name("tokenizers", "Tokenizer.add_tokens"),
)
_PARTS: Final = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
"""The parts of a tokenizer that are small. They are copied, because their users may change them."""


def make_calls_cheap() -> None:
    """Replaces these functions in this process. A second call does nothing."""
    if not CHEAP_CALLS.applies:
        return
    after_import(_GET_SOURCE.module, lambda utils: _GET_SOURCE.replace(utils, _get_source), CHEAP_CALLS)
    after_import(
        _GET_MODULE.module, lambda library: place_variant(library, "inspect", getmodule=_get_module), CHEAP_CALLS
    )
    if not hasattr(logging.config.dictConfig, "__wrapped__"):
        logging.config.dictConfig = _clearing_once()(logging.config.dictConfig)
    if CHEAP_COPIES.applies:
        after_import(_COPY.module, lambda tokenizers: _COPY.replace(tokenizers, _copy_tokenizer), CHEAP_COPIES)


def _get_source(stacklevel: int) -> str:
    """Returns the file and line of a torch operator. `inspect`, which torch uses, would resolve all paths."""
    frame = sys._getframe(stacklevel)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _get_module(inspect: Any, object: Any) -> ModuleType | None:
    """Returns a frame's module. `inspect`, which torch uses, would resolve the paths of all modules."""
    if not isinstance(object, FrameType):
        module: ModuleType | None = inspect.getmodule(object)
        return module
    return sys.modules.get(object.f_globals.get("__name__", ""))


@contextmanager
def _clearing_once() -> Iterator[None]:
    """Within it, `dictConfig` clears all loggers' caches once, not once per configured logger."""
    manager: Any = logging.root.manager
    manager._clear_cache = lambda: None
    try:
        yield
    finally:
        del manager._clear_cache
        manager._clear_cache()


def _copy_tokenizer(tokenizer: Any, memo: dict[int, Any]) -> Any:
    """Copies a tokenizer in less than a millisecond. `copy` itself would write and parse JSON.

    The copy shares the tokenizer's model, which has the vocabulary and is never changed.
    """
    added = tokenizer.get_added_tokens_decoder()
    copied = type(tokenizer)(tokenizer.model)
    for part in _PARTS:
        if (value := getattr(tokenizer, part)) is not None:
            setattr(copied, part, copy.deepcopy(value))
    copied.add_tokens([added[number] for number in sorted(added)])
    if tokenizer.truncation is not None:
        copied.enable_truncation(**tokenizer.truncation)
    if tokenizer.padding is not None:
        copied.enable_padding(**tokenizer.padding)
    if copied.get_added_tokens_decoder() == added:
        return copied
    return type(tokenizer).from_str(tokenizer.to_str())
