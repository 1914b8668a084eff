"""Records the times of the functions that vLLM marks with `@instrument(span_name=...)`."""

import functools
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Final

from startup.hook import Hook, Name
from startup.imports.finder import wraps
from startup.vllm.journal import this_start

_INSTRUMENT: Final = Name("vllm.tracing", "instrument", ("obj", "span_name"))
SPANS: Final = Hook(
    "spans",
    does="times the functions that vLLM marks with `@instrument`",
    without="reports lack the phases inside vLLM",
    promise="reports and `explain` name vLLM's phases",
    needs=(_INSTRUMENT,),
    places={"api", "forkserver", "template"},
)


@wraps(SPANS, _INSTRUMENT)
def _with_timing(instrument: Callable[..., Any]) -> Callable[..., Any]:
    def instrument_and_time(obj: Callable[..., Any] | None = None, **options: Any) -> Any:
        if obj is None:
            return functools.partial(instrument_and_time, **options)
        instrumented = instrument(obj, **options)
        if inspect.iscoroutinefunction(obj):  # some run as long as the server
            return instrumented
        return _timed(instrumented, _phase_name(options.get("span_name") or obj.__name__))

    return instrument_and_time


def _timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function, wrapped so that it records its time as a span, until the journal is closed."""

    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        journal, record = this_start.journal, this_start.record
        if journal is None or not journal.is_open:
            return function(*args, **kwargs)
        with journal.span(name), record.phase(name) if record else nullcontext():
            return function(*args, **kwargs)

    return timed


def _phase_name(span_name: str) -> str:
    """The phase's name: `Loading (GPU)` becomes `loading_gpu`."""
    return "_".join("".join(c if c.isalnum() else " " for c in span_name.lower()).split())
