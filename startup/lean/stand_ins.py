"""Leaves out, while transformers is imported, what serving never uses: a third of its import time.

transformers imports `torch.distributed.tensor` for tensor parallelism, which brings `torch._dynamo` and sympy, and its
GGUF reader, which reads the sources of all models; torch asks for symbolic shapes whenever a model is laid out on the
meta device. Of these an engine on one device needs names for annotations, false `isinstance` checks, decorators
that matter to torch.compile alone, and conditions on plain numbers; stand-ins give that.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from startup.lean import plain_shapes
from startup.lean.absent_finder import AbsentFinder, forget
from startup.lean.scan_cache import cached_scans

LEFT_OUT_OF_TORCH = ("torch._meta_registrations",)
"""Rules for tensors without data, in Python; what it takes to lay out a model there is in C++."""

LEFT_OUT = (
    "sympy",
    "torch._dynamo",
    "torch.distributed.tensor",
    plain_shapes.INSTEAD_OF,
    "transformers.modeling_gguf_pytorch_utils",
)


class StandIns:
    """While installed, importing what is left out gives stand-ins, unless it is loaded already.

    Once removed, the modules can be imported as ever; who imported a name meanwhile keeps its stand-in.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._finder = _StandInFinder(tuple(name for name in names if name not in sys.modules), on_miss=self.remove)

    def install(self) -> None:
        """From now on there are stand-ins."""
        sys.meta_path.insert(0, self._finder)

    def remove(self) -> None:
        """From now on there are none; may be called again."""
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        for name, module in list(sys.modules.items()):
            if isinstance(module, _StandInModule | _PlainShapesModule) and module.__loader__ is self._finder:
                forget(name, module)


class LeftOut:
    """What a process did without in its imports so far."""

    def __init__(self, stand_ins: Sequence[StandIns] = ()) -> None:
        self._stand_ins = list(stand_ins)

    def end(self) -> None:
        """Whatever is imported from now on is the real thing.

        torch's own initialisers import what is left out too, hence this is for when the model is built.
        """
        for stand_ins in self._stand_ins:
            stand_ins.remove()

    def restore(self) -> bool:
        """Makes torch whole, as far as it can be done in a running process; whether there was anything to do."""
        if not self._stand_ins:
            return False
        self.end()
        self._stand_ins.clear()
        _import_all(LEFT_OUT_OF_TORCH)
        return True


def import_lean(modules: Sequence[str]) -> LeftOut:
    """Imports torch and the modules with stand-ins, which stay installed; where the modules fail, without them.

    Another version of transformers may make more of what is left out than a stand-in can give.
    """
    from_torch, stand_ins = StandIns(LEFT_OUT_OF_TORCH), StandIns(LEFT_OUT)
    from_torch.install()
    importlib.import_module("torch")
    before = set(sys.modules)
    stand_ins.install()
    try:
        with cached_scans():
            _import_all(modules)
    except Exception:  # noqa: BLE001 - whatever a stand-in breaks, the real module mends
        stand_ins.remove()
        for name in set(sys.modules) - before:
            if name.partition(".")[0] != "torch":  # its modules register operators, which can be done once
                del sys.modules[name]
        _import_all(modules)
    return LeftOut([from_torch, stand_ins])


class _Absent(type):
    """The class of stand-ins: nothing is an instance of them, and as a decorator they change nothing."""

    def __instancecheck__(cls, instance: object) -> bool:
        return False

    def __subclasscheck__(cls, subclass: type) -> bool:
        return subclass is cls

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args and callable(args[0]) else _unchanged


class _StandInModule(ModuleType):
    """Has every name that is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        stand_in = _Absent(name, (), {"__module__": self.__name__})
        setattr(self, name, stand_in)
        return stand_in


class _PlainShapesModule(ModuleType):
    """Has the functions of `plain_shapes`; asked for more, it makes way for the real module."""

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
    """Answers for the modules that are left out."""

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
