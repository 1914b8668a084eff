"""Makes packages import a name of one of their modules when it is first used."""

import builtins
import functools
import re
import sys
from collections.abc import Collection, Mapping, Set
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from startup.imports.distributions import import_later
from startup.imports.finder import after_import, before_import, replace, stop_replacing
from startup.imports.late_modules import delay_module, namespace_of
from startup.imports.late_names import LateName, WithLateNames


def make_late(packages: Mapping[str, Collection[str]], *, is_known: bool = False) -> None:
    """Makes packages that are imported from now on import a name of their modules when it is first used.

    Args:
        packages: package -> its modules that can be imported before these names. An import of another module
            imports all names first, as in plain Python. If there are none, each module can. A name that ends
            with a dot stands for a package and all its modules.
        is_known: whether these modules are known to import no others. Otherwise, their sources are searched.
    """
    for name, light in packages.items():
        package = _LatePackage(name, light, is_known)
        before_import(name, package.delay_imports)
        after_import(name, package.offer_names)


class _LatePackage:
    """Makes a package's own statements `from .module import name` return stand-ins."""

    def __init__(self, name: str, light: Collection[str], is_known: bool) -> None:
        self.name = name
        self._light = frozenset(light)
        self._light_packages = tuple(each for each in light if each.endswith("."))
        self._is_known = is_known
        self._own = f"{name}."
        self._modules: set[str] = set()
        """The names of the modules whose import is late."""

    def delay_imports(self, package: ModuleType) -> None:
        """Called before the package's code runs."""
        if self._is_known or all(map(self._imports_no_others, self._light)):
            vars(package)["__builtins__"] = {**vars(builtins), "__import__": self._import}

    def _imports_no_others(self, module: str) -> bool:
        """Whether the source of a light module imports only light modules of the package."""
        spec = PathFinder.find_spec(module, sys.modules[self.name].__path__)
        text = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
        imported = re.findall(rf"^(?:import|from) ({re.escape(self.name)}[.\w]*|\.[.\w]*)", text, re.MULTILINE)
        return bool(text) and self._light.issuperset(imported)

    def _import(self, name: str, own: Any = None, _: Any = None, names: Any = (), level: int = 0) -> Any:
        """Does what `__import__` does. `own`: the package's namespace."""
        module = resolve_name("." * level + name, self.name) if level else name
        for each in names if module == self.name else ():
            if each not in own:
                delay_module(f"{self._own}{each}", own, functools.partial(LateName, f"{self._own}{each}", importer=own))
        if not names or "*" in names or not module.startswith(self._own):
            return builtins.__import__(name, own, None, names, level)
        self._modules.add(module.removeprefix(self._own))
        return SimpleNamespace(**{name: LateName(module, name, own) for name in names})

    def offer_names(self, package: ModuleType) -> None:
        """Makes the package import a late name when another module asks for it."""
        vars(package)["__builtins__"] = vars(builtins)
        if self._modules:
            package.__class__ = _with_late_names(self._modules, self._modules & vars(package).keys())
            if self._light:
                replace(self._import_names_first)

    def _import_names_first(self, module: str) -> ModuleSpec | None:
        """Called before each import. The spec of a module that has been imported meanwhile, else None."""
        is_light = module in self._light or f"{module}.".startswith(self._light_packages)
        if is_light or not module.startswith(self._own):
            return None
        stop_replacing(self._import_names_first)
        _import_names(sys.modules[self.name])
        loaded = sys.modules.get(module)
        return ModuleSpec(module, _Loaded(loaded)) if loaded is not None else None


class _Loaded(Loader):
    """Loads a module that is loaded already."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def _import_names(package: ModuleType) -> None:
    """Imports all late names of a package."""
    for value in [*namespace_of(package).values()]:
        if type(value) is LateName:
            value.real()


def _with_late_names(modules: Set[str], hidden: Set[str]) -> type[ModuleType]:
    """Returns the class of a package with late names.

    Args:
        modules: the names of its late modules. Plain Python would have bound them to the package.
        hidden: names of modules that the package uses for something else, so they are not bound.
    """

    class Package(WithLateNames):
        def __getattribute__(self, key: str) -> Any:
            if key == "__dict__":  # for `dir`, `vars`, `import *` and `reload`
                _import_names(self)
            return super().__getattribute__(key)

        def __getattr__(self, key: str) -> Any:
            if key in modules and key not in hidden:
                return import_later(f"{self.__name__}.{key}")
            raise AttributeError(f"module {self.__name__!r} has no attribute {key!r}", name=key, obj=self)

        def __setattr__(self, key: str, value: Any) -> None:
            if key not in hidden or not isinstance(value, ModuleType):
                super().__setattr__(key, value)

    return Package
