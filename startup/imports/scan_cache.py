"""Caches results on disk that transformers would compute from the same files at each import.

transformers reads the sources of all its models to find the names they export (0.2 s), and maps every
installed package to its distribution (0.05 s). Both results depend only on the installed packages.
"""

import functools
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeAlias

from startup.hook import Hook, Name
from startup.imports.distributions import distribution_stamps
from startup.imports.finder import after_import, cancel
from startup.storage.caches import Kept, Value

_SCAN: Final = Name("transformers.utils.import_utils", "define_import_structure", ("module_path", "prefix"))
CACHED_SCANS: Final = Hook(
    "cached scans",
    does="keeps on disk which names transformers' models export",
    without="every start reads the sources of all models",
    gain="0.75 (0.70–0.85) of a cold start, embedded engine",
    needs=(_SCAN,),
)

Structure: TypeAlias = dict[frozenset[str], dict[str, set[str]]]
"""The exported names by required backends and module, in the form that transformers uses."""
_Group: TypeAlias = tuple[list[str], dict[str, list[str]]]
"""One entry of a `Structure`, in a form that JSON can hold."""


@contextmanager
def cached_scans() -> Iterator[None]:
    """During the block, an import of transformers takes both results from the cache, or adds them to it."""
    if not CACHED_SCANS.applies:
        yield
        return
    find_distributions = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = lambda: _kept_or_new("distributions", dict, find_distributions)
    if _SCAN.module not in sys.modules:
        after_import(_SCAN.module, _replace_scan)
    try:
        yield
    finally:
        cancel(_SCAN.module, _replace_scan)
        importlib.metadata.packages_distributions = find_distributions


def _kept_or_new(name: str, convert: Callable[[Any], Value], compute: Callable[[], Value]) -> Value:
    """Returns the cached value, or computes and caches it. Any change of packages makes it invalid."""
    kept = Kept("imports", (sys.prefix, name), (sys.version, distribution_stamps()))
    if (value := kept.read(convert)) is None:
        kept.write(value := compute())
    return value


def _replace_scan(module: ModuleType) -> None:
    """Adds the cache to transformers' module that scans the sources."""
    path = Path(module.__file__ or "")
    # The sources of an editable install, outside such a folder, change without a change of the stamps.
    if {"site-packages", "dist-packages"}.isdisjoint(path.parts):
        return
    scan = _SCAN.get(module)
    models = path.parents[1] / "models"

    @functools.cache
    def stored() -> list[_Group]:
        return _kept_or_new("structure", list, lambda: _to_json(scan(str(models))))

    def cached_scan(module_path: str | Path, prefix: str | None = None) -> Structure:
        """Returns a new object for each call, because transformers modifies it."""
        if Path(module_path) not in (models, models / "__init__.py"):
            found: Structure = scan(module_path, prefix)
            return found
        before = "" if prefix is None else f"{prefix}."
        return {
            frozenset(backends): {f"{before}{name}": set(exported) for name, exported in modules.items()}
            for backends, modules in stored()
        }

    _SCAN.replace(module, cached_scan)


def _to_json(structure: Structure) -> list[_Group]:
    return [
        (sorted(backends), {name: sorted(exported) for name, exported in modules.items()})
        for backends, modules in structure.items()
    ]
