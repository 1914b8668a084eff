"""Delays the import of a module that another module imports only in order to patch it."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from startup.vllm.import_hooks import after_import


def delay_import(name: str, *, patched_by: str, function: str) -> None:
    """Blocks imports of `name` while `patched_by` is imported; a later import of `name` calls `function`.

    The function must ignore the ImportError of the module that it patches, and must be callable again.
    Does nothing if `patched_by` has no such function.

    Args:
        name: the module to import late.
        patched_by: the module that patches it.
        function: the patching function in `patched_by`.
    """
    if name in sys.modules or patched_by in sys.modules or not _has_function(patched_by, function):
        return
    blocker = _ImportBlocker(name)
    sys.meta_path.insert(0, blocker)

    def patch(_: ModuleType) -> None:
        getattr(importlib.import_module(patched_by), function)()

    def unblock(_: ModuleType) -> None:
        sys.meta_path.remove(blocker)
        after_import(name, patch)

    after_import(patched_by, unblock)


class _ImportBlocker(MetaPathFinder):
    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == self._name:
            raise ModuleNotFoundError(f"{fullname} is imported later", name=fullname)
        return None


def _has_function(module: str, function: str) -> bool:
    """Whether the module's source has the function with its `except ImportError`; found without an import."""
    root, _, rest = module.partition(".")
    spec = find_spec(root)
    if spec is None or not spec.submodule_search_locations:
        return False
    path = f"{spec.submodule_search_locations[0]}/{rest.replace('.', '/')}.py"
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            source = file.read()
    except OSError:
        return False
    _, found, body = source.partition(f"def {function}(")
    return bool(found) and "except ImportError" in body.partition("\ndef ")[0]
