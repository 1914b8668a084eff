"""Stand-ins for modules that a process does not use, or does not use yet. Importing stand-ins takes no time.

A stand-in has every attribute. An attribute has no effect as a decorator, and no instances as a class. A
stand-in that has become real passes each later use on to the real object.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from startup.imports.distributions import import_later, note_package
from startup.imports.finder import replace, stop_replacing

Functions = Mapping[str, Callable[..., Any]]


class StandIns:
    """From `install` to `remove`, an import of one of `names`, or of a submodule, gives a stand-in.

    Modules that are loaded already are not replaced. After `remove`, imports give the real modules. Names
    that were imported before keep their stand-ins.
    """

    def __init__(
        self, names: Sequence[str], *, become_real: bool = False, functions: Mapping[str, Functions] | None = None
    ) -> None:
        """
        Args:
            names: the modules.
            become_real: whether stand-ins forward to the real objects after the removal.
            functions: replacements for a module's functions, by module. If a process calls any other name of
                such a module, the stand-ins are removed, and the real function is called.
        """
        self._names = tuple(name for name in names if name not in sys.modules)
        for name in self._names:
            note_package(name)
        self.functions = functions or {}
        self._become_real = become_real
        self.are_real = False
        """Whether the stand-ins pass each use on to the real object."""

    def install(self) -> None:
        replace(self._find)

    def remove(self) -> None:
        """Removes the stand-ins, so that imports give the real modules. May be called again."""
        stop_replacing(self._find)
        self.are_real = self._become_real
        for name, module in list(sys.modules.items()):
            if isinstance(module, _StandInModule) and getattr(module, "__loader__", None) is self:
                _forget(name, module)

    def attribute(self, module: str, name: str) -> Any:
        if replacement := self.functions.get(module, {}).get(name):
            return replacement
        if self.are_real:
            return _real_attribute(import_later(module), name)
        return StandIn(name, (), {"__module__": module, "_path": (name,), "_stand_ins": self})

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandInModule(spec.name, self)

    def exec_module(self, module: ModuleType) -> None:
        """Does nothing: a stand-in has no code."""

    def _find(self, name: str) -> ModuleSpec | None:
        is_one = any(name == left_out or name.startswith(f"{left_out}.") for left_out in self._names)
        return ModuleSpec(name, self, is_package=True) if is_one else None  # type: ignore[arg-type]


class _StandInModule(ModuleType):
    def __init__(self, name: str, stand_ins: StandIns) -> None:
        super().__init__(name)
        self._stand_ins = stand_ins

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = self._stand_ins.attribute(self.__name__, name)
        if isinstance(value, StandIn):
            vars(self)[name] = value
        return value


class StandIn(type):
    """Stands for an attribute of a module, as a decorator without effect or a class without instances."""

    _stand_ins: StandIns
    _path: tuple[str, ...]

    def real(cls) -> Any:
        value: Any = import_later(cls.__module__)
        for name in cls._path:
            value = _real_attribute(value, name)
        return value

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if cls._stand_ins.are_real:
            return getattr(cls.real(), name)
        path = (*cls._path, name)
        return StandIn(name, (), {"__module__": cls.__module__, "_path": path, "_stand_ins": cls._stand_ins})

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if not cls._stand_ins.are_real and cls.__module__ in cls._stand_ins.functions:
            cls._stand_ins.remove()
        elif not cls._stand_ins.are_real:
            return args[0] if args and callable(args[0]) else lambda function: function
        return cls.real()(*args, **kwargs)

    def __instancecheck__(cls, instance: object) -> bool:
        return cls._stand_ins.are_real and cls.__module__ in sys.modules and isinstance(instance, cls.real())

    def __subclasscheck__(cls, subclass: type) -> bool:
        return subclass is cls

    def __or__(cls, other: Any) -> Any:
        return object

    __ror__ = __or__


def _forget(name: str, module: ModuleType) -> None:
    del sys.modules[name]
    parent, _, child = name.rpartition(".")
    package = sys.modules.get(parent)
    if package is not None and vars(package).get(child) is module:
        delattr(package, child)


def _real_attribute(owner: Any, name: str) -> Any:
    """Returns an attribute. If the attribute is a module of a package, imports this module if necessary."""
    try:
        return getattr(owner, name)
    except AttributeError:
        if not hasattr(owner, "__path__"):
            raise
    try:
        return import_later(f"{owner.__name__}.{name}")
    except ModuleNotFoundError as err:
        raise AttributeError(f"module {owner.__name__!r} has no attribute {name!r}") from err
