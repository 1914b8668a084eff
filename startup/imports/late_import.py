"""Delays the import of a module that another module imports only in order to patch it."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from startup.hooks.hook import Name
from startup.imports.finder import after_import


def delay_import(name: str, *, patched_by: Name) -> None:
    """Blocks imports of `name` while the module that patches it is imported; a later import calls the patch.

    The patch must ignore the ImportError of the module that it patches, and must be callable again.

    Args:
        name: the module to import late.
        patched_by: the patching function.
    """
    if name in sys.modules or patched_by.module in sys.modules:
        return
    blocker = _ImportBlocker(name)
    sys.meta_path.insert(0, blocker)

    def patch(_: ModuleType) -> None:
        patched_by.get(importlib.import_module(patched_by.module))()

    def unblock(_: ModuleType) -> None:
        sys.meta_path.remove(blocker)
        after_import(name, patch)

    after_import(patched_by.module, unblock)


class _ImportBlocker(MetaPathFinder):
    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == self._name:
            raise ModuleNotFoundError(f"{fullname} is imported later", name=fullname)
        return None
