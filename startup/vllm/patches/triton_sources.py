"""Delays the reading of a Triton kernel's source, which `@triton.jit` reads and tokenizes at the import."""

import inspect
import threading
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final

from startup.hook import Hook, Name
from startup.imports.finder import alters

_JIT: Final = "triton.runtime.jit"
_INITIALIZE: Final = Name(_JIT, "JITCallable.__init__", ("fn",))
LATE_SOURCES: Final = Hook(
    "late sources of Triton kernels",
    does="reads a kernel's source when it is first hashed or compiled",
    without="imports read hundreds of sources",
    promise="keys, sources and errors of kernels are Triton's own",
    needs=(_INITIALIZE, Name(_JIT, "JITFunction")),
    places={"api", "forkserver", "template"},
)
_KEPT: Final = ("__doc__", "__name__", "__qualname__", "__globals__", "__module__")
_IS_COMPLETE: Final = "_vllm_cli_is_complete"
_lock: Final = threading.RLock()


@alters(LATE_SOURCES, _JIT)
def _initialize_late(jit: ModuleType) -> None:
    """Makes a kernel without a source read it when an attribute is used that the kernel does not have yet."""
    initialize = _INITIALIZE.get(jit)
    if any("__getattr__" in vars(kind) for kind in jit.JITFunction.__mro__):
        return

    def initialize_later(self: Any, fn: Any) -> None:
        if not isinstance(fn, FunctionType) or not Path(fn.__code__.co_filename).is_file():
            initialize(self, fn)  # reports that there is no source
            return
        self.fn = fn
        self.signature = inspect.signature(fn)
        for name in _KEPT:
            setattr(self, name, getattr(fn, name))

    def complete(self: Any, name: str) -> Any:
        """Called for a missing attribute. Triton's own `__init__` sets it and all others that are missing."""
        with _lock:
            values = vars(self)
            if name not in values and "fn" in values and not name.startswith("__") and _IS_COMPLETE not in values:
                set_before = {**values, _IS_COMPLETE: True}
                initialize(self, self.fn)
                values.update(set_before)
        return object.__getattribute__(self, name)

    _INITIALIZE.replace(jit, initialize_later)
    jit.JITCallable.__getattr__ = complete
