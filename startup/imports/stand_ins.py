"""Finds modules that are left out, and all modules below them, so that stand-ins are imported instead."""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class AbsentFinder(MetaPathFinder, Loader):
    """Inserted at the front of `sys.meta_path`; subclasses define `create_module`."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if any(fullname == name or fullname.startswith(f"{name}.") for name in self._names):
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def exec_module(self, module: ModuleType) -> None:
        """A stand-in has no code."""


def remove_stand_in(name: str, module: ModuleType) -> None:
    """From now on, importing the name gives the real module."""
    del sys.modules[name]
    parent, _, child = name.rpartition(".")
    package = sys.modules.get(parent)
    if package is not None and vars(package).get(child) is module:
        delattr(package, child)
