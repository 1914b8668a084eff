"""Imports heavy modules one after the other, on the main thread, with the garbage collector paused.

Imports on a second thread are unsafe. vLLM imported transformers on one to save time and got half-initialised
modules (vllm-project/vllm #40331, #40442, reverted by #40438). Without the pause, the collector would run
repeatedly while millions of long-lived objects are created. The pause saves a quarter of the time.
"""

import functools
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from startup.imports.cheap_calls import make_calls_cheap
from startup.imports.learned_imports import learned_imports

if TYPE_CHECKING:
    from startup.imports.lean import LeftOut

_ENGINE_MODULES = (
    "transformers",
    "transformers.generation.utils",
    "server.engine.build",
    "server.engine.engine_process",
)


@functools.cache
def import_engine() -> "LeftOut":
    """Imports torch, transformers and the engine, with stand-ins for modules that serving never uses.

    A second call returns the result of the first one, also in a fork.
    """
    from startup.imports.lean import import_lean

    make_calls_cheap()
    with importing():
        return import_lean(_ENGINE_MODULES)


def end_stand_ins() -> None:
    """Ends the stand-ins in the API process, after the engine's fork. Only the engine needs stand-ins."""
    if import_engine.cache_info().currsize:
        import_engine().end()


def import_vision() -> None:
    """Imports the modules that render images, with stand-ins for modules that serving never uses."""
    from startup.imports.lean import import_lean

    with importing():
        import_lean(("transformers", "server.text.renderers.images.vision")).end()


@contextmanager
def importing() -> Iterator[None]:
    """During the block, the garbage collector is paused, and modules come from the import file.

    After the block, all objects that exist then are excluded from garbage collection.

    Raises:
        RuntimeError: this is not the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("heavy modules are imported on the main thread only")
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with learned_imports():
            yield
    finally:
        if was_enabled:
            gc.enable()
    gc.freeze()
