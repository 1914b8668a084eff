"""Imports transformers with stand-ins for modules that serving never uses: a third of its import time.

transformers imports `torch.distributed.tensor` for tensor parallelism, which imports `torch._dynamo` and
sympy, and its GGUF reader, which reads the sources of all models. torch uses symbolic shapes whenever a model
is created on the meta device. An engine on one device needs only names for annotations, false `isinstance`
checks, decorators that affect only torch.compile, and conditions on plain numbers. Stand-ins provide these.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from startup.hooks.left_out import applies
from startup.hooks.of_libraries import LEFT_OUT, LEFT_OUT_OF_TORCH, STAND_INS
from startup.imports import plain_shapes
from startup.imports.scan_cache import cached_scans
from startup.imports.stand_ins import AbsentFinder, remove_stand_in


class StandIns:
    """While installed, importing the named modules gives stand-ins, unless they are loaded already.

    After removal the real modules can be imported; names imported before keep their stand-ins.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._finder = _StandInFinder(tuple(name for name in names if name not in sys.modules), on_miss=self.remove)

    def install(self) -> None:
        """From now on, imports give stand-ins."""
        sys.meta_path.insert(0, self._finder)

    def remove(self) -> None:
        """From now on, imports give the real modules; may be called again."""
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        for name, module in list(sys.modules.items()):
            if isinstance(module, _StandInModule | _PlainShapesModule) and module.__loader__ is self._finder:
                remove_stand_in(name, module)


class LeftOut:
    """The modules that a process has replaced by stand-ins so far."""

    def __init__(self, stand_ins: Sequence[StandIns] = ()) -> None:
        self._stand_ins = list(stand_ins)

    def end(self) -> None:
        """From now on, imports give the real modules.

        Called once the model is built: torch's own initialisers import the left out modules too.
        """
        for stand_ins in self._stand_ins:
            stand_ins.remove()

    def restore(self) -> bool:
        """Imports the left out parts of torch; returns False if nothing was left out."""
        if not self._stand_ins:
            return False
        self.end()
        self._stand_ins.clear()
        _import_all(LEFT_OUT_OF_TORCH)
        return True


def import_lean(modules: Sequence[str]) -> LeftOut:
    """Imports torch and the modules with stand-ins, which stay installed; if that fails, without stand-ins.

    Another version of transformers may use a left out module in a way that its stand-in does not support.
    """
    if not applies(STAND_INS):
        with cached_scans():
            _import_all(("torch", *modules))
        return LeftOut()
    from_torch, stand_ins = StandIns(LEFT_OUT_OF_TORCH), StandIns(LEFT_OUT)
    from_torch.install()
    importlib.import_module("torch")
    before = set(sys.modules)
    stand_ins.install()
    try:
        with cached_scans():
            _import_all(modules)
    except Exception:  # noqa: BLE001 - any error may come from a stand-in; the second import has none
        stand_ins.remove()
        for name in set(sys.modules) - before:
            if name.partition(".")[0] != "torch":  # its modules register operators, which works only once
                del sys.modules[name]
        _import_all(modules)
    return LeftOut([from_torch, stand_ins])


class _Absent(type):
    """The metaclass of stand-ins: classes without instances, decorators without effect."""

    def __instancecheck__(cls, instance: object) -> bool:
        return False

    def __subclasscheck__(cls, subclass: type) -> bool:
        return subclass is cls

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args and callable(args[0]) else _unchanged


class _StandInModule(ModuleType):
    """Has every attribute, as a stand-in."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        stand_in = _Absent(name, (), {"__module__": self.__name__})
        setattr(self, name, stand_in)
        return stand_in


class _PlainShapesModule(ModuleType):
    """Has the functions of `plain_shapes`; for any other attribute it is replaced by the real module."""

    def __init__(self, name: str, on_miss: Callable[[], None]) -> None:
        super().__init__(name)
        self._on_miss = on_miss

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in plain_shapes.FUNCTIONS:
            return plain_shapes.FUNCTIONS[name]
        self._on_miss()
        return getattr(importlib.import_module(self.__name__), name)


class _StandInFinder(AbsentFinder):
    """Creates the stand-ins of the left out modules."""

    def __init__(self, names: tuple[str, ...], on_miss: Callable[[], None]) -> None:
        super().__init__(names)
        self._on_miss = on_miss

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        if spec.name == plain_shapes.INSTEAD_OF:
            return _PlainShapesModule(spec.name, self._on_miss)
        return _StandInModule(spec.name)


def _unchanged(function: Any) -> Any:
    return function


def _import_all(modules: Sequence[str]) -> None:
    for module in modules:
        importlib.import_module(module)
