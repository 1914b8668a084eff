"""What the new programs that multiprocessing starts, forkserver or spawned process, should not get of this one."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

from startup.processes import group_signals


@contextmanager
def without_main_module() -> Iterator[None]:
    """While open, processes are started as if there were no script, of which the engine's processes need nothing."""
    main = vars(sys.modules["__main__"])
    hidden: dict[str, Any] = {name: main.pop(name) for name in ("__file__", "__spec__") if name in main}
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(hidden)


@contextmanager
def without_group_signals() -> Iterator[None]:
    """While open, processes begin with these signals held back; the resource tracker, which they need, comes before.

    Its start ends with SIGINT and SIGTERM unblocked, whatever they were (`ResourceTracker.ensure_running`).
    """
    with group_signals.held_back():
        resource_tracker.ensure_running()
    with group_signals.held_back():
        yield
