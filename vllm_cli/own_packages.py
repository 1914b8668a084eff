"""Finds this program's packages, and a user's modules with the same names.

`router`, `server`, `startup`, `base` and `envs` are common names, so they are not in site-packages. An
installed wheel has these packages in `vllm_cli/packages`. A checkout has them beside `vllm_cli`. Therefore
the console script, `python -m vllm_cli`, the forkserver and spawned processes import this module before any
other package of this program. Forks inherit the import finders. Helper processes run isolated (`python -I`),
without the user's folders.

If the user has a package with such a name, too, ours is imported. A submodule or attribute that is missing in
ours is taken from the user's package, for example for `--middleware server.auth.check`.

The import finder of `startup.imports` cannot do this, because this module makes `startup` importable.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

TYPE_CHECKING = False  # a warm start waits for this module, and `typing` is slow to import
if TYPE_CHECKING:
    from typing import Any

_PACKAGES = frozenset({"router", "startup", "server", "base", "envs"})
_HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib takes 7 ms
_INSTALLED_INTO = os.path.dirname(_HERE)  # noqa: PTH120
_IN_WHEEL = f"{_HERE}/packages"
_ROOT = _IN_WHEEL if os.path.isdir(f"{_IN_WHEEL}/startup") else _INSTALLED_INTO  # noqa: PTH112


class OwnPackagesFinder:
    """The first meta-path finder. It looks for this program's packages only in this program's folder."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Returns None for all modules except this program's packages."""
        spec = PathFinder.find_spec(name, [_ROOT], target) if name in _PACKAGES else None
        if spec is not None and spec.origin is not None:
            spec.loader = _PackageLoader(name, spec.origin)
        return spec


class UsersModulesFinder:
    """The last meta-path finder. Searches the user's folders for submodules that our packages lack."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Returns None for all modules except submodules of this program's packages."""
        if path is None or name.partition(".")[0] not in _PACKAGES:
            return None
        return next(_find_users(name), None)


class _PackageLoader(SourceFileLoader):
    """Gives one of our packages the attributes of the user's module of the same name."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        users = _UsersModule(module)
        setattr(module, "__getattr__", users.attribute)  # noqa: B010 - PEP 562


class _UsersModule:
    """A user's module with the name of one of our packages, imported when it is needed."""

    def __init__(self, own: ModuleType) -> None:
        self._own = own
        self._module: ModuleType | None = None

    def attribute(self, name: str) -> "Any":
        """An attribute of the user's module. Raises AttributeError if it has none, or for our submodules."""
        package = self._own.__name__
        if not name.startswith("__") and PathFinder.find_spec(f"{package}.{name}", self._own.__path__) is None:
            if self._module is None:
                self._import()
            if self._module is not None and hasattr(self._module, name):
                return getattr(self._module, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=self._own)

    def _import(self) -> None:
        from importlib.util import module_from_spec  # noqa: PLC0415 - nearly no start needs it

        for spec in _find_users(self._own.__name__):
            if spec.loader is not None:  # a folder without __init__.py has no attributes
                self._module = module_from_spec(spec)
                try:
                    spec.loader.exec_module(self._module)
                except BaseException:
                    self._module = None
                    raise
                return


def describe_conflict() -> str | None:
    """A warning if an unrelated distribution named `vllm-cli` is installed into the same folder."""
    for folder in sorted(os.listdir(_INSTALLED_INTO)):  # noqa: PTH208
        if not (folder.startswith("vllm_cli-") and folder.endswith(".dist-info")):
            continue
        name = folder.removesuffix(".dist-info").replace("vllm_cli-", "vllm-cli ")
        return (
            f"the unrelated distribution {name} has installed a package vllm_cli into the same folder. Remove it "
            "with `pip uninstall vllm-cli`. Then run `pip install --force-reinstall --no-deps .` in a clone of ours."
        )
    return None


def _find_users(name: str) -> Iterator[ModuleSpec]:
    """Yields the specs of the user's modules with this name, in the order of `sys.path`."""
    *parents, _ = name.split(".")
    own = os.path.realpath(_ROOT)
    for folder in sys.path:
        if isinstance(folder, str) and os.path.realpath(folder) != own:
            spec = PathFinder.find_spec(name, ["/".join((folder or ".", *parents))])
            if spec is not None:
                yield spec


# Another copy of this module may have installed the finders (`multiprocessing.spawn`).
if not any(getattr(finder, "__name__", "") == OwnPackagesFinder.__name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, OwnPackagesFinder)
    sys.meta_path.append(UsersModulesFinder)
