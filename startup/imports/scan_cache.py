"""Caches on disk what transformers computes on every import from files that do not change.

transformers reads the sources of all its models to find the names they export (0.2 s), and maps every
installed package to its distribution (0.05 s). Both depend only on the installed packages.
"""

import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from hashlib import sha256
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from server.machine.files import MODE, read_own, write_whole
from startup.caches.folders import layers
from startup.hooks.left_out import applies
from startup.hooks.of_libraries import CACHED_SCANS, SCAN
from startup.imports.distributions import distribution_stamps

Structure: TypeAlias = dict[frozenset[str], dict[str, set[str]]]
"""Required backends -> modules -> exported names, in the form of transformers."""

_SITE_FOLDERS = ("site-packages", "dist-packages")


@contextmanager
def cached_scans() -> Iterator[None]:
    """While open, importing transformers reads the results of both from the cache, and adds missing ones."""
    if not applies(CACHED_SCANS):
        yield
        return
    cache = _Cache()
    finder = _ScanFinder(cache)
    find_distributions = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = lambda: cache.distributions(find_distributions)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        importlib.metadata.packages_distributions = find_distributions
    cache.save()


class _Cache:
    """One file per virtual environment; its key changes when a package is installed or removed."""

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
        """Writes new entries to the file; does nothing if the folder cannot be written to."""
        if self._is_changed:
            with suppress(OSError):
                path = self._paths[0]
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, json.dumps({"key": self._key, "entries": self._entries}), mode=MODE)

    def _add(self, name: str, value: object) -> None:
        self._entries[name] = value
        self._is_changed = True

    @cached_property
    def _entries(self) -> dict[str, Any]:
        for path in self._paths:
            with suppress(OSError, ValueError, TypeError, KeyError):
                content = json.loads(read_own(path))
                if content["key"] == self._key:
                    return dict(content["entries"])
        return {}

    @cached_property
    def _key(self) -> list[object]:
        return scan_key()

    @cached_property
    def _paths(self) -> tuple[Path, ...]:
        """Where the file may be; it is written to the first place."""
        name = sha256(sys.prefix.encode()).hexdigest()[:16]
        return layers(f"imports/{name}.json")


def scan_key() -> list[object]:
    """Changes when a package is installed, upgraded or removed."""
    return [sys.version, sha256(repr(distribution_stamps()).encode()).hexdigest()]


class _ScanFinder(MetaPathFinder):
    """Finds the module of transformers that scans, and gives it a loader that adds the cache."""

    def __init__(self, cache: _Cache) -> None:
        self._cache = cache

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != SCAN.module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        # Sources outside such a folder, as of an editable install, change without a change of the key.
        if spec is None or spec.origin is None or not set(_SITE_FOLDERS) & set(Path(spec.origin).parts):
            return None
        spec.loader = _ScanLoader(fullname, spec.origin, self._cache)
        return spec


class _ScanLoader(SourceFileLoader):
    """Loads the module, and replaces its scan by one that uses the cache."""

    def __init__(self, fullname: str, path: str, cache: _Cache) -> None:
        super().__init__(fullname, path)
        self._cache = cache

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        scan = getattr(module, SCAN.path, None)
        if scan is None:
            return
        models = Path(module.__file__ or "").parents[1] / "models"

        def cached_scan(module_path: str | Path, prefix: str | None = None) -> Structure:
            if Path(module_path) not in (models, models / "__init__.py"):
                found: Structure = scan(module_path, prefix)
                return found
            structure = self._cache.structure(lambda: scan(str(models)))
            if prefix is None:
                return structure
            return {b: {f"{prefix}.{name}": v for name, v in modules.items()} for b, modules in structure.items()}

        SCAN.replace(module, cached_scan)
