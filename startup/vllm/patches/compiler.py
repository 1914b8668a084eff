"""Imports vLLM with stand-ins for torch's compiler, which takes half of the API server's import time.

vLLM imports `torch._dynamo` and `torch._inductor` in every process, to patch them and to decorate functions
that only some workers run. Until the imports are done, stand-ins take the place of the compiler's names.
Afterwards a stand-in forwards each use to the real object. What the imports do to those names (decorate, set,
patch) has no effect, so this is for processes that compile nothing.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from startup.hooks.left_out import applies
from startup.hooks.of_libraries import DEFERRED_COMPILER, DEFERRED_MODULES, INNER_KERNELS
from startup.imports.finder import after_import
from startup.imports.stand_ins import AbsentFinder, remove_stand_in


@contextmanager
def deferred_compiler() -> Iterator[None]:
    """While open, importing the compiler gives stand-ins; no effect on modules that are loaded already."""
    if not applies(DEFERRED_COMPILER):
        yield
        return
    finder = _DeferringFinder(tuple(name for name in DEFERRED_MODULES if name not in sys.modules))
    sys.meta_path.insert(0, finder)
    try:
        with _without_inner_kernels():
            yield
    finally:
        finder.end()


@contextmanager
def _without_inner_kernels() -> Iterator[None]:
    """Disables torch's search for kernels in Triton operators: it parses their source with the compiler."""
    undo: list[Callable[[], None]] = []
    has_ended = False

    def hook(triton: Any) -> None:
        if has_ended:
            return
        find = INNER_KERNELS.get(triton)
        undo.append(lambda: INNER_KERNELS.replace(triton, find))
        INNER_KERNELS.replace(triton, lambda function: [])

    after_import(INNER_KERNELS.module, hook)
    try:
        yield
    finally:
        has_ended = True
        for step in undo:
            step()


class _DeferringFinder(AbsentFinder):
    """Finds the deferred modules."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(names)
        self.has_ended = False

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _DeferredModule(spec.name, self)

    def end(self) -> None:
        """From now on imports give the real modules, and stand-ins forward to them."""
        self.has_ended = True
        sys.meta_path.remove(self)
        for name, module in list(sys.modules.items()):
            if isinstance(module, _DeferredModule):
                remove_stand_in(name, module)


class _DeferredModule(ModuleType):
    """Has every attribute, as a stand-in; after the imports, attributes come from the real module."""

    def __init__(self, name: str, finder: _DeferringFinder) -> None:
        super().__init__(name)
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self._finder.has_ended:
            return _real_attribute(importlib.import_module(self.__name__), name)
        stand_in = _Deferred(name, (), {"__module__": self.__name__, "path": (name,), "finder": self._finder})
        vars(self)[name] = stand_in
        return stand_in


class _Deferred(type):
    """Stand-in for an attribute of a deferred module: a decorator without effect, a class without instances.

    After the imports, calls, attributes and instance checks are forwarded to the real object.
    """

    finder: _DeferringFinder
    path: tuple[str, ...]

    def real(cls) -> Any:
        """The object in whose place it stands."""
        value: Any = importlib.import_module(cls.__module__)
        for name in cls.path:
            value = _real_attribute(value, name)
        return value

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if cls.finder.has_ended:
            return getattr(cls.real(), name)
        return _Deferred(name, (), {"__module__": cls.__module__, "path": (*cls.path, name), "finder": cls.finder})

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls.finder.has_ended:
            return cls.real()(*args, **kwargs)
        return args[0] if args and callable(args[0]) else _unchanged

    def __instancecheck__(cls, instance: object) -> bool:
        return cls.finder.has_ended and cls.__module__ in sys.modules and isinstance(instance, cls.real())

    def __subclasscheck__(cls, subclass: type) -> bool:
        return subclass is cls

    def __or__(cls, other: Any) -> Any:
        return object

    __ror__ = __or__


def _real_attribute(owner: Any, name: str) -> Any:
    """An attribute, or a package's module that is not imported yet."""
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
