"""Takes the times of what vLLM itself marks as worth timing: its `@instrument(span_name=...)` functions."""

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

from startup.vllm.compile_cache import count_inductor
from startup.vllm.import_hooks import after_import
from startup.vllm.journal import Journal


def record_spans(journal: Journal, *, level: int = logging.WARNING) -> None:
    """From now on vLLM's marked functions note their times, for as long as the start lasts.

    Args:
        journal: where they are noted.
        level: how loud it is said that vLLM marks nothing.
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
    """`Loading (GPU)` is `loading_gpu`."""
    return "_".join("".join(c if c.isalnum() else " " for c in span_name.lower()).split())
