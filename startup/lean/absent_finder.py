"""Answers for modules that are left out, and for all below them, with modules that only stand in their place."""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class AbsentFinder(MetaPathFinder, Loader):
    """Goes to the front of `sys.meta_path`; what `create_module` makes is for whoever derives from this."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if any(fullname == name or fullname.startswith(f"{name}.") for name in self._names):
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


def forget(name: str, module: ModuleType) -> None:
    """Whoever imports the name from now on gets the real module."""
    del sys.modules[name]
    parent, _, child = name.rpartition(".")
    package = sys.modules.get(parent)
    if package is not None and vars(package).get(child) is module:
        delattr(package, child)
