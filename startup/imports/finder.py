"""Calls a function right after a module has been imported, without importing the module earlier."""

import logging
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

logger = logging.getLogger(__name__)

Hook = Callable[[ModuleType], None]


def after_import(name: str, hook: Hook) -> None:
    """Calls `hook` with the module once it has been imported; at once if it is loaded already.

    An error in the hook is logged; the import succeeds all the same.

    Args:
        name: the module.
        hook: called with the module.
    """

    def call(module: ModuleType) -> None:
        try:
            hook(module)
        except Exception as err:  # noqa: BLE001 - another version of the module works without the hook
            effect = "vLLM starts without the optimisations that need it"
            logger.warning("%s is not as expected: %s; %s", module.__name__, err, effect)

    module = sys.modules.get(name)
    if module is not None:
        call(module)
        return
    sys.meta_path.insert(0, _HookFinder(name, call))


class _HookFinder(MetaPathFinder):
    """Finds one module with the finders behind this one, and wraps its loader.

    It stays installed until the module has been imported: `find_spec` may be called without an import.
    """

    def __init__(self, name: str, hook: Hook) -> None:
        self._name = name
        self._hook = hook

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        spec = self._find_with_others(path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _HookLoader(spec.loader, self._run)
        return spec

    def _find_with_others(self, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        others = sys.meta_path[sys.meta_path.index(self) + 1 :] if self in sys.meta_path else []
        specs = (finder.find_spec(self._name, path, target) for finder in others)
        return next((spec for spec in specs if spec is not None), None)

    def _run(self, module: ModuleType) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            self._hook(module)


class _HookLoader(Loader):
    """The module's own loader, which calls the hook after the module's code."""

    def __init__(self, loader: Loader, hook: Hook) -> None:
        self._loader = loader
        self._hook = hook

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._hook(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
