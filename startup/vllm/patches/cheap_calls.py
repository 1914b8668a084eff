"""Replaces functions of the libraries that take a tenth of a start by others with the same results."""

import contextlib
import functools
import logging
import logging.config
import sys
from collections.abc import Iterator
from typing import Any

from startup.hooks.left_out import applies
from startup.hooks.of_libraries import CHEAP_CALLS, GET_SOURCE
from startup.imports.finder import after_import


def make_calls_cheap() -> None:
    """From now on; a second call does nothing."""
    if not applies(CHEAP_CALLS):
        return
    after_import(GET_SOURCE.module, _replace_get_source)
    if not hasattr(logging.config.dictConfig, "__wrapped__"):
        logging.config.dictConfig = _with_one_clearing(logging.config.dictConfig)


def _replace_get_source(utils: Any) -> None:
    """torch notes the file and line of each operator: `inspect` resolves the paths of all modules for it."""

    def get_source(stacklevel: int) -> str:
        frame = sys._getframe(stacklevel)
        return f"{frame.f_code.co_filename}:{frame.f_lineno}"

    GET_SOURCE.replace(utils, get_source)


def _with_one_clearing(configure: Any) -> Any:
    """logging clears the caches of all loggers for each logger that it configures."""

    @functools.wraps(configure)
    def configure_and_clear_once(config: Any) -> None:
        with _clearing_once():
            configure(config)

    return configure_and_clear_once


@contextlib.contextmanager
def _clearing_once() -> Iterator[None]:
    manager: Any = logging.root.manager
    manager._clear_cache = lambda: None
    try:
        yield
    finally:
        del manager._clear_cache
        manager._clear_cache()
