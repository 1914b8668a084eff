"""Imports modules of vLLM one after the other on the main thread, without those that serving does not use."""

import gc
import importlib
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import nullcontext

from startup.hooks.of_vllm import API_MODULES
from startup.imports.late_names import API_SERVER, late_imports
from startup.imports.scan_cache import cached_scans
from startup.processes import group_signals
from startup.vllm.patches.cheap_calls import make_calls_cheap
from startup.vllm.patches.compiler import deferred_compiler
from startup.vllm.patches.lazy_compile import make_compile_lazy
from startup.vllm.patches.unused_commands import stub_unused_commands


def import_api_server(more: Iterable[str] = (), *, is_lean: bool = True) -> Mapping[str, str]:
    """Imports the API server and further modules.

    Args:
        more: further modules, in order of import; failures among them are ignored.
        is_lean: whether torch's compiler and what the engine's start does not need are left out; only valid
            if no model runs in this process.

    Returns:
        The API server's own modules that could not be imported, with the error.
    """
    more = tuple(more)
    if all(name in sys.modules for name in (*API_MODULES, *more)):  # in a fork of a template process
        return {}
    stub_unused_commands()
    make_calls_cheap()
    if is_lean:
        make_compile_lazy()
    with deferred_compiler() if is_lean else nullcontext(), late_imports(API_SERVER) if is_lean else nullcontext():
        failed = import_leniently((*API_MODULES, *more))
    return {name: reason for name, reason in failed.items() if name in API_MODULES}


def import_rest(modules: Iterable[str], *, is_lean: bool = True) -> None:
    """Imports further modules once the engine is requested; if it is lean, without torch's compiler."""
    was_enabled = gc.isenabled()
    gc.disable()
    with deferred_compiler() if is_lean else nullcontext():
        import_leniently(modules)
    gc.freeze()
    if was_enabled:
        gc.enable()


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
