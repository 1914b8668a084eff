"""What vLLM's API server imports, and the way to import it: on the main thread, without what it will not use."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Final

from startup.vllm.deferred_compiler import deferred_compiler
from startup.vllm.importing import import_leniently
from startup.vllm.lazy_compile import make_compile_lazy
from startup.vllm.unused_commands import stub_unused_commands

LATER_MODULES: Final = ("vllm.kernels",)
"""Imported only when the engine is ready; in a start there is time for it while the forkserver still imports."""

_MODULES: Final = ("vllm.entrypoints.cli.main", "vllm.entrypoints.cli.serve", "vllm.v1.engine.async_llm")


def import_api_server(more: Iterable[str] = (), *, is_lean: bool = True) -> Mapping[str, str]:
    """Imports it, and more if that can be imported; returns what it needs and could not get, with the reason.

    Args:
        more: further modules, in their order.
        is_lean: whether torch's compiler is deferred; only where no model is run in this process.
    """
    stub_unused_commands()
    if is_lean:
        make_compile_lazy()
    with deferred_compiler() if is_lean else nullcontext():
        failed = import_leniently((*_MODULES, *more))
    return {name: reason for name, reason in failed.items() if name in _MODULES}
