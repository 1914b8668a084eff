"""Imports modules of vLLM one after the other on the main thread, without those that serving does not use."""

import importlib
import sys
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Final

from startup.hooks.hook import Hook, Name
from startup.imports.heavy import importing
from startup.imports.scan_cache import cached_scans
from startup.vllm.patches.cheap_calls import make_calls_cheap
from startup.vllm.patches.compiler import compiler_imported
from startup.vllm.patches.late_imports import late_imports
from startup.vllm.patches.unused_commands import stub_unused_commands

API_MODULES: Final = ("vllm.entrypoints.cli.main", "vllm.entrypoints.cli.serve", "vllm.v1.engine.async_llm")
API_SERVER: Final = Hook(
    "API server's modules",
    does="imports them while the forkserver imports the engine's",
    without="nothing is imported in advance",
    needs=tuple(map(Name, API_MODULES)),
    is_essential=True,
)

LATER_MODULES: Final = ("vllm.kernels",)
"""vLLM imports these once the engine is ready; the launcher, while the engine loads its model."""
SERVING_MODULES: Final = ("vllm.entrypoints.launchers.app", "vllm.entrypoints.launchers.api_server.app_state")
"""The launcher imports these, too, while the engine loads its model; new in 0.31 and 0.32."""


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
    with compiler_imported("deferred" if is_lean else "now"), late_imports() if is_lean else nullcontext():
        failed = import_leniently((*API_MODULES, *more))
    return {name: reason for name, reason in failed.items() if name in API_MODULES}


def import_rest(modules: Iterable[str], *, is_lean: bool = True) -> None:
    """Imports further modules once the engine is requested; if it is lean, without torch's compiler."""
    with importing(), compiler_imported("deferred" if is_lean else "now"):
        import_leniently(modules)


def import_leniently(modules: Iterable[str]) -> dict[str, str]:
    """Imports the modules; returns those that fail, with the error.

    Code that needs a failed module imports it again and raises the error there.
    """
    failed = {}
    with cached_scans():
        for name in modules:
            try:
                importlib.import_module(name)
            except Exception as err:  # noqa: BLE001 - a module may raise any error
                failed[name] = f"{type(err).__name__}: {err}"
    return failed
