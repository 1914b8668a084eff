"""Records the times of the functions that vLLM marks with `@instrument(span_name=...)`."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from startup.hooks.left_out import applies
from startup.hooks.of_vllm import INSTRUMENT, SPANS
from startup.imports.finder import after_import
from startup.vllm.journal import Journal
from startup.vllm.patches.compile_cache import count_inductor


class _Recorder:
    """The journal of this process and of those forked from it later; there is none in a template process."""

    journal: Journal | None = None
    is_prepared = False


def record_spans(journal: Journal) -> None:
    """Makes vLLM's marked functions record their times until the journal is closed."""
    _Recorder.journal = journal
    prepare_spans()


def prepare_spans() -> None:
    """Prepares the functions that are imported from now on for `record_spans`; a second call does nothing."""

    def hook(tracing: Any) -> None:
        instrument = INSTRUMENT.get(tracing)

        @functools.wraps(instrument)
        def instrument_and_time(obj: Callable[..., Any] | None = None, **options: Any) -> Any:
            if obj is None:
                return functools.partial(instrument_and_time, **options)
            instrumented = instrument(obj, **options)
            if inspect.iscoroutinefunction(obj):  # some run as long as the server
                return instrumented
            return timed(instrumented, _phase_name(options.get("span_name") or obj.__name__))

        INSTRUMENT.replace(tracing, instrument_and_time)

    if applies(SPANS) and not _Recorder.is_prepared:
        _Recorder.is_prepared = True
        after_import(INSTRUMENT.module, hook)


def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function, which records its time as a span; a coroutine function's is that of its coroutine."""
    if inspect.iscoroutinefunction(function):
        return _timed_coroutine(function, name)

    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        journal = _Recorder.journal
        if journal is None or not journal.is_open:
            return function(*args, **kwargs)
        with journal.span(name):
            result = function(*args, **kwargs)
        if graphs := count_inductor():
            journal.write(compile_cache=graphs)
        return result

    return timed


def _timed_coroutine(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    async def timed_coroutine(*args: Any, **kwargs: Any) -> Any:
        journal = _Recorder.journal
        if journal is None or not journal.is_open:
            return await function(*args, **kwargs)
        with journal.span(name):
            return await function(*args, **kwargs)

    return timed_coroutine


def _phase_name(span_name: str) -> str:
    """`Loading (GPU)` becomes `loading_gpu`."""
    return "_".join("".join(c if c.isalnum() else " " for c in span_name.lower()).split())
