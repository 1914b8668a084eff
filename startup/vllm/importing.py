"""Imports modules one after the other on the main thread, and collects those that fail."""

import importlib
import threading
from collections.abc import Iterable

from startup.lean.scan_cache import cached_scans
from startup.processes import group_signals


def import_leniently(modules: Iterable[str]) -> dict[str, str]:
    """Imports the modules; returns those that fail, with the error.

    Code that needs a failed module imports it again and raises the error there.

    Raises:
        RuntimeError: called on another thread than the main one.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("modules are imported on the main thread only")
    failed = {}
    with cached_scans():
        for name in modules:
            try:
                with group_signals.interrupting():
                    importlib.import_module(name)
            except Exception as err:  # noqa: BLE001 - a module may raise any error
                failed[name] = f"{type(err).__name__}: {err}"
    return failed
