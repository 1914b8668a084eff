"""Imports vLLM without what only compiling a model takes: half of the import time of its API server.

vLLM imports `torch._dynamo` and `torch._inductor` in every process, to patch them and to decorate functions that
only some workers run. Until the imports are over, their names only stand for something; from then on they are
the real thing for whoever uses them. What the imports do to those names (decorate, set, patch) is lost: this is
for processes that compile nothing.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

from startup.lean.absent_finder import AbsentFinder, forget
from startup.vllm.import_hooks import after_import

DEFERRED: Final = (
    "functorch.compile",
    "sympy",
    "torch._dynamo",
    "torch._functorch.aot_autograd",
    "torch._inductor",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.fx.experimental.symbolic_shapes",
    "torch.utils._sympy",
)


@contextmanager
def deferred_compiler() -> Iterator[None]:
    """While open, importing the compiler gives names of it alone; nothing happens where it is loaded already."""
    finder = _DeferringFinder(tuple(name for name in DEFERRED if name not in sys.modules))
    sys.meta_path.insert(0, finder)
    try:
        with _without_inner_kernels():
            yield
    finally:
        finder.end()


@contextmanager
def _without_inner_kernels() -> Iterator[None]:
    """Torch parses the source of each operator of Triton's, with tools of its compiler, for kernels that it calls."""
    undo: list[Callable[[], None]] = []
    is_over = False

    def hook(triton: Any) -> None:
        if is_over:
            return
        find = triton.get_inner_triton_kernels
        undo.append(lambda: setattr(triton, "get_inner_triton_kernels", find))
        triton.get_inner_triton_kernels = lambda function: []

    after_import("torch._library.triton", hook)
    try:
        yield
    finally:
        is_over = True
        for step in undo:
            step()


class _DeferringFinder(AbsentFinder):
    """Answers for the deferred modules."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(names)
        self.is_over = False

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _DeferredModule(spec.name, self)

    def end(self) -> None:
        """Whatever is imported or used from now on is the real thing."""
        self.is_over = True
        sys.meta_path.remove(self)
        for name, module in list(sys.modules.items()):
            if isinstance(module, _DeferredModule):
                forget(name, module)


class _DeferredModule(ModuleType):
    """Has every name that is asked for; asked again after the imports, it asks the real module."""

    def __init__(self, name: str, finder: _DeferringFinder) -> None:
        super().__init__(name)
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self._finder.is_over:
            return _real_attribute(importlib.import_module(self.__name__), name)
        stand_in = _Deferred(name, (), {"__module__": self.__name__, "path": (name,), "finder": self._finder})
        vars(self)[name] = stand_in
        return stand_in


class _Deferred(type):
    """Stands for something of a deferred module: as a decorator it changes nothing, and nothing is an instance of it.

    After the imports it is what it stands for, to whoever calls it, takes an attribute or asks for instances.
    """

    finder: _DeferringFinder
    path: tuple[str, ...]

    def real(cls) -> Any:
        """What it stands for."""
        value: Any = importlib.import_module(cls.__module__)
        for name in cls.path:
            value = _real_attribute(value, name)
        return value

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if cls.finder.is_over:
            return getattr(cls.real(), name)
        return _Deferred(name, (), {"__module__": cls.__module__, "path": (*cls.path, name), "finder": cls.finder})

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls.finder.is_over:
            return cls.real()(*args, **kwargs)
        return args[0] if args and callable(args[0]) else _unchanged

    def __instancecheck__(cls, instance: object) -> bool:
        return cls.finder.is_over and cls.__module__ in sys.modules and isinstance(instance, cls.real())

    def __subclasscheck__(cls, subclass: type) -> bool:
        return subclass is cls

    def __or__(cls, other: Any) -> Any:
        return object

    __ror__ = __or__


def _real_attribute(owner: Any, name: str) -> Any:
    """Of a package it may be a module that nobody has imported yet."""
    try:
        return getattr(owner, name)
    except AttributeError:
        if not hasattr(owner, "__path__"):
            raise
    try:
        return importlib.import_module(f"{owner.__name__}.{name}")
    except ModuleNotFoundError as err:
        raise AttributeError(f"module {owner.__name__!r} has no attribute {name!r}") from err


def _unchanged(function: Any) -> Any:
    return function
