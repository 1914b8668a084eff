"""Puts the import of a module off that another one imports only in order to patch it."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from startup.vllm.import_hooks import after_import


def delay_import(name: str, *, not_for: str, then: str) -> None:
    """While `not_for` is imported, `name` cannot be; once somebody does import it, `not_for`'s function `then` is run.

    For a patching function that gives up quietly where it cannot import what it patches, and can be called again.
    Does nothing where `not_for` has no such function.
    """
    if name in sys.modules or not_for in sys.modules or not _has_function(not_for, then):
        return
    refusal = _Refusal(name)
    sys.meta_path.insert(0, refusal)

    def patch(_: ModuleType) -> None:
        function = getattr(importlib.import_module(not_for), then)
        function()

    def go_on(_: ModuleType) -> None:
        sys.meta_path.remove(refusal)
        after_import(name, patch)

    after_import(not_for, go_on)


class _Refusal(MetaPathFinder):
    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == self._name:
            raise ModuleNotFoundError(f"{fullname} is imported later", name=fullname)
        return None


def _has_function(module: str, function: str) -> bool:
    """Looks into the source: importing the module is what is to be changed."""
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
