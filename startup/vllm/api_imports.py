"""What vLLM's API server imports, and the way to import it: on the main thread, without what it will not use."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Final

from startup.vllm.compile_later import compile_later
from startup.vllm.deferred_compiler import deferred_compiler
from startup.vllm.idle_commands import leave_out_idle_commands
from startup.vllm.importing import import_leniently

LATER_MODULES: Final = ("vllm.kernels",)
"""Imported only when the engine is ready; in a start there is time for it while the forkserver still imports."""

_MODULES: Final = ("vllm.entrypoints.cli.main", "vllm.entrypoints.cli.serve", "vllm.v1.engine.async_llm")


def import_api_server(more: Iterable[str] = (), *, is_lean: bool = True) -> Mapping[str, str]:
    """Imports it, and more if that can be imported; returns what it needs and could not get, with the reason.

    Args:
        more: further modules, in their order.
        is_lean: whether torch's compiler is deferred; only where no model is run in this process.
    """
    leave_out_idle_commands()
    if is_lean:
        compile_later()
    with deferred_compiler() if is_lean else nullcontext():
        failed = import_leniently((*_MODULES, *more))
    return {name: reason for name, reason in failed.items() if name in _MODULES}
