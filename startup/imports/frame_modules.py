"""Answers `inspect.getmodule` for a frame from the frame itself, while modules are imported.

torch records the source line of each operator that is registered. For that `inspect` resolves the path of
every loaded module's file, again for all modules loaded since: 5 % of the time of the engine's imports.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any

from startup.hooks.left_out import applies
from startup.hooks.of_libraries import FRAME_MODULES, GET_MODULE


@contextmanager
def quick_frame_modules() -> Iterator[None]:
    """While open, `inspect.getmodule` finds the module of an ordinary frame by its name."""
    if not applies(FRAME_MODULES):
        yield
        return
    search: Callable[..., ModuleType | None] = GET_MODULE.get(inspect)

    def getmodule(object: Any, _filename: str | None = None) -> ModuleType | None:
        if isinstance(object, FrameType) and (module := _module_of(object)) is not None:
            return module
        return search(object, _filename)

    GET_MODULE.replace(inspect, getmodule)
    try:
        yield
    finally:
        if inspect.getmodule is getmodule:
            GET_MODULE.replace(inspect, search)


def _module_of(frame: FrameType) -> ModuleType | None:
    """The module whose file and namespace the frame's code uses; None for generated code."""
    module = sys.modules.get(frame.f_globals.get("__name__", ""))
    if module is None or getattr(module, "__dict__", None) is not frame.f_globals:
        return None
    return module if frame.f_globals.get("__file__") == frame.f_code.co_filename else None
