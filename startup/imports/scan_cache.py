"""Caches on disk what transformers computes on every import from files that do not change.

transformers reads the sources of all its models to find the names they export (0.2 s), and maps every
installed package to its distribution (0.05 s). Both depend only on the installed packages.
"""

import functools
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeAlias

from startup.caches import Kept
from startup.hooks.hook import Hook, Name
from startup.imports.distributions import distribution_stamps
from startup.imports.finder import after_import, cancel

_SCAN: Final = Name("transformers.utils.import_utils", "define_import_structure", ("module_path", "prefix"))
_DISTRIBUTIONS: Final = Name("importlib.metadata", "packages_distributions", ())
CACHED_SCANS: Final = Hook(
    "cached scans",
    does="keeps on disk which names transformers' models export",
    without="every start reads the sources of all models",
    needs=(_SCAN, _DISTRIBUTIONS),
)

Structure: TypeAlias = dict[frozenset[str], dict[str, set[str]]]
"""Required backends -> modules -> exported names, in the form of transformers."""

_SITE_FOLDERS = ("site-packages", "dist-packages")


@contextmanager
def cached_scans() -> Iterator[None]:
    """While open, importing transformers reads the results of both from the cache, and adds missing ones."""
    if not CACHED_SCANS.applies:
        yield
        return
    cache = _Cache()
    add_cache = functools.partial(_replace_scan, cache)
    find_distributions = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = lambda: cache.distributions(find_distributions)
    if _SCAN.module not in sys.modules:
        after_import(_SCAN.module, add_cache)
    try:
        yield
    finally:
        cancel(_SCAN.module, add_cache)
        importlib.metadata.packages_distributions = find_distributions
    cache.save()


class _Cache:
    """One file per virtual environment."""

    def __init__(self) -> None:
        self._is_changed = False

    def distributions(self, find: Callable[[], Mapping[str, list[str]]]) -> Mapping[str, list[str]]:
        """Import names and their distributions, as of `importlib.metadata.packages_distributions`."""
        cached = self._entries.get("distributions")
        if isinstance(cached, dict):
            return cached
        found = find()
        self._add("distributions", dict(found))
        return found

    def structure(self, scan: Callable[[], Structure]) -> Structure:
        """The names that transformers' models export; a new object per call: transformers modifies it."""
        cached = self._entries.get("structure")
        if isinstance(cached, list):
            return {
                frozenset(backends): {m: set(names) for m, names in modules.items()} for backends, modules in cached
            }
        found = scan()
        entry = [[sorted(backends), {m: sorted(names) for m, names in found[backends].items()}] for backends in found]
        self._add("structure", entry)
        return found

    def save(self) -> None:
        """Keeps new entries for later processes."""
        if self._is_changed:
            self._kept.write(self._entries)

    def _add(self, name: str, value: object) -> None:
        self._entries[name] = value
        self._is_changed = True

    @cached_property
    def _entries(self) -> dict[str, Any]:
        return self._kept.read(dict) or {}

    @cached_property
    def _kept(self) -> Kept:
        """Valid until a package is installed, upgraded or removed."""
        return Kept("imports", sys.prefix, (sys.version, distribution_stamps()))


def _replace_scan(cache: _Cache, module: ModuleType) -> None:
    """Adds the cache to the module of transformers that scans."""
    path = Path(module.__file__ or "")
    # Sources outside such a folder, as of an editable install, change without a change of the key.
    if not set(_SITE_FOLDERS) & set(path.parts):
        return
    scan = _SCAN.get(module)
    models = path.parents[1] / "models"

    def cached_scan(module_path: str | Path, prefix: str | None = None) -> Structure:
        if Path(module_path) not in (models, models / "__init__.py"):
            found: Structure = scan(module_path, prefix)
            return found
        structure = cache.structure(lambda: scan(str(models)))
        if prefix is None:
            return structure
        return {b: {f"{prefix}.{name}": v for name, v in modules.items()} for b, modules in structure.items()}

    _SCAN.replace(module, cached_scan)
