"""Records the times of the functions that vLLM marks with `@instrument(span_name=...)`."""

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

from startup.vllm.compile_cache import count_inductor
from startup.vllm.import_hooks import after_import
from startup.vllm.journal import Journal


def record_spans(journal: Journal, *, level: int = logging.WARNING) -> None:
    """Makes vLLM's marked functions record their times until the journal is closed.

    Args:
        journal: takes the records.
        level: log level of an error with vLLM's `instrument`.
    """

    def hook(tracing: Any) -> None:
        instrument = tracing.instrument

        @functools.wraps(instrument)
        def instrument_and_time(obj: Callable[..., Any] | None = None, **options: Any) -> Any:
            if obj is None:
                return functools.partial(instrument_and_time, **options)
            return _timed(instrument(obj, **options), _phase_name(options.get("span_name") or obj.__name__), journal)

        tracing.instrument = instrument_and_time

    after_import("vllm.tracing", hook, level=level)


def _timed(function: Callable[..., Any], name: str, journal: Journal) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):
        return function

    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        if not journal.is_open:
            return function(*args, **kwargs)
        with journal.span(name):
            result = function(*args, **kwargs)
        if graphs := count_inductor():
            journal.write(compile_cache=graphs)
        return result

    return timed


def _phase_name(span_name: str) -> str:
    """`Loading (GPU)` becomes `loading_gpu`."""
    return "_".join("".join(c if c.isalnum() else " " for c in span_name.lower()).split())
