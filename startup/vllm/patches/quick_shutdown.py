"""Ends engine and workers without collecting the garbage of all objects that were imported and loaded.

vLLM unfreezes and collects all objects when an engine shuts down, because a program may go on without it.
A process of its own ends, which gives its memory back; a collection takes up to half a second in each.
"""

import functools
import gc
from collections.abc import Callable
from typing import Any, Final

from startup.hooks.hook import Hook, Name, Text
from startup.imports.finder import wrap_after_import

_ENGINE: Final = Name("vllm.v1.engine.core", "EngineCore.shutdown", ())
_WORKER: Final = Name("vllm.v1.worker.gpu_worker", "Worker.shutdown", ())
QUICK_SHUTDOWN: Final = Hook(
    "quick shutdown",
    does="ends engine and workers without collecting the garbage of all objects",
    without="a stop takes up to a second longer",
    needs=(
        _ENGINE,
        _WORKER,
        *(Text((name.module,), r"gc\.unfreeze\(\)", "its shutdown calls gc.unfreeze") for name in (_ENGINE, _WORKER)),
    ),
)


def shut_down_quickly() -> None:
    """For the processes that are forked from this one; not for one that goes on without its engine."""
    if QUICK_SHUTDOWN.applies:
        for name in (_ENGINE, _WORKER):
            wrap_after_import(name, _keeping_frozen)


def _keeping_frozen(shutdown: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(shutdown)
    def shut_down(*args: Any, **options: Any) -> None:
        unfreeze = gc.unfreeze
        gc.unfreeze = _keep_frozen
        try:
            shutdown(*args, **options)
        finally:
            gc.unfreeze = unfreeze

    return shut_down


def _keep_frozen() -> None:
    """Does nothing."""
