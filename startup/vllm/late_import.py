"""Delays the import of a module that another module imports only in order to patch it."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from startup.vllm.import_hooks import after_import


def delay_import(name: str, *, not_for: str, then: str) -> None:
    """Blocks imports of `name` while `not_for` is imported; a later import of `name` calls `then`.

    For a patching function that ignores the ImportError of the module it patches, and can be called again.
    Does nothing if `not_for` has no such function.

    Args:
        name: the module to import late.
        not_for: the module that patches it.
        then: the patching function in `not_for`.
    """
    if name in sys.modules or not_for in sys.modules or not _has_function(not_for, then):
        return
    blocker = _ImportBlocker(name)
    sys.meta_path.insert(0, blocker)

    def patch(_: ModuleType) -> None:
        function = getattr(importlib.import_module(not_for), then)
        function()

    def unblock(_: ModuleType) -> None:
        sys.meta_path.remove(blocker)
        after_import(name, patch)

    after_import(not_for, unblock)


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
