"""Records the times of the functions that vLLM marks with `@instrument(span_name=...)`."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final, NamedTuple

from startup.crash.output_record import OutputRecord
from startup.hooks.hook import Hook, Name
from startup.imports.finder import after_import, wrap_after_import
from startup.vllm.journal import Journal
from startup.vllm.patches.compile_cache import count_inductor

_INSTRUMENT: Final = Name("vllm.tracing", "instrument", ("obj", "span_name"))
SPANS: Final = Hook(
    "spans",
    does="times the functions that vLLM marks with `@instrument`",
    without="the report of the start has no phases inside vLLM, and modules are recorded at readiness only",
    needs=(_INSTRUMENT,),
)

NAMED_SPANS: Final = Hook(
    "spans by name",
    does="times further functions of vLLM (`startup.vllm.patches.spans`)",
    without="the report of the start has fewer phases",
    needs=(
        Name("vllm.engine.arg_utils", "EngineArgs.create_engine_config"),
        Name("vllm.v1.engine.input_processor", "InputProcessor.__init__"),
    ),
)


class NamedSpan(NamedTuple):
    """A function of vLLM and the phase that it is."""

    module: str
    function: str
    """Its name in the module, or `Class.method`."""
    phase: str


_LAUNCHERS: Final = "vllm.entrypoints.launchers"

_NAMED: Final = (
    NamedSpan("vllm.engine.arg_utils", "AsyncEngineArgs.add_cli_args", "define_flags"),
    NamedSpan("vllm.engine.arg_utils", "EngineArgs.create_engine_config", "engine_config"),
    NamedSpan("vllm.renderers.registry", "renderer_from_config", "renderer"),
    NamedSpan("vllm.v1.engine.input_processor", "InputProcessor.__init__", "input_processor"),
    NamedSpan("vllm.v1.metrics.loggers", "StatLoggerManager.__init__", "metrics"),
    NamedSpan(f"{_LAUNCHERS}.app", "build_app", "routes"),
    NamedSpan(f"{_LAUNCHERS}.api_server.app_state", "init_app_state", "request_handlers"),
    NamedSpan("vllm.v1.structured_output", "StructuredOutputManager.__init__", "structured_output"),
    NamedSpan("vllm.v1.core.sched.scheduler", "Scheduler.__init__", "scheduler"),
)
"""As in vLLM 0.32; a function that another version does not have has no span."""


class _Recorder:
    """The journal of this process and of those forked from it later; there is none in a template process."""

    journal: Journal | None = None
    record: OutputRecord | None = None
    is_prepared = False


def record_spans(journal: Journal, record: OutputRecord) -> None:
    """Makes vLLM's marked and the named functions record their times until the journal is closed."""
    _Recorder.journal = journal
    _Recorder.record = record
    prepare_spans()
    for entry in _NAMED if NAMED_SPANS.applies else ():
        after_import(entry.module, functools.partial(_time, entry))


def prepare_spans() -> None:
    """Prepares the functions that are imported from now on for `record_spans`; a second call does nothing."""
    if SPANS.applies and not _Recorder.is_prepared:
        _Recorder.is_prepared = True
        wrap_after_import(_INSTRUMENT, _with_timing)


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
    """The function, which records its time as a span; a coroutine function's is that of its coroutine."""

    @contextmanager
    def recorded() -> Iterator[None]:
        journal = _Recorder.journal
        if journal is None or not journal.is_open:
            yield
            return
        with journal.span(name), _Recorder.record.phase(name) if _Recorder.record else nullcontext():
            yield
        if graphs := count_inductor():
            journal.write(compile_cache=graphs)

    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        with recorded():
            return function(*args, **kwargs)

    @functools.wraps(function)
    async def timed_coroutine(*args: Any, **kwargs: Any) -> Any:
        with recorded():
            return await function(*args, **kwargs)

    return timed_coroutine if inspect.iscoroutinefunction(function) else timed


def _phase_name(span_name: str) -> str:
    """`Loading (GPU)` becomes `loading_gpu`."""
    return "_".join("".join(c if c.isalnum() else " " for c in span_name.lower()).split())


def _time(entry: NamedSpan, module: Any) -> None:
    holder, _, name = entry.function.rpartition(".")
    owner = getattr(module, holder, None) if holder else module
    function = inspect.getattr_static(owner, name, None)
    if isinstance(function, staticmethod):
        setattr(owner, name, staticmethod(_timed(function.__func__, entry.phase)))
    elif inspect.isfunction(function):
        setattr(owner, name, _timed(function, entry.phase))
