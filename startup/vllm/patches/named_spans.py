"""Spans of vLLM's functions that it does not mark itself, so that the timeline explains the whole start."""

import functools
import inspect
from typing import Any, Final, NamedTuple

from startup.hooks.left_out import applies
from startup.hooks.of_vllm import NAMED_SPANS as NAMED_SPANS_HOOK
from startup.imports.finder import after_import
from startup.vllm.patches.spans import timed


class NamedSpan(NamedTuple):
    """A function of vLLM and the phase that it is."""

    module: str
    function: str
    """Its name in the module, or `Class.method`."""
    phase: str


_LAUNCHERS: Final = "vllm.entrypoints.launchers"

NAMED_SPANS: Final = (
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


def record_named_spans() -> None:
    """From now on, the functions record their times."""
    for entry in NAMED_SPANS if applies(NAMED_SPANS_HOOK) else ():
        after_import(entry.module, functools.partial(_time, entry))


def _time(entry: NamedSpan, module: Any) -> None:
    holder, _, name = entry.function.rpartition(".")
    owner = getattr(module, holder, None) if holder else module
    function = inspect.getattr_static(owner, name, None)
    if isinstance(function, staticmethod):
        setattr(owner, name, staticmethod(timed(function.__func__, entry.phase)))
    elif inspect.isfunction(function):
        setattr(owner, name, timed(function, entry.phase))
