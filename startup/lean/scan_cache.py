"""Remembers in the cache folder what transformers works out at every import, from files that have not changed since.

It looks for the names that each of its models exports by reading all their sources (0.2 s), and maps every installed
package to its distribution (0.05 s). Both depend only on what is installed.
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

from envs.registry import env
from startup.timeline.whole_file import write_whole

Structure: TypeAlias = dict[frozenset[str], dict[str, set[str]]]
"""Required backends to modules to the names that they export, as transformers has it."""

_SCANNING_MODULE = "transformers.utils.import_utils"
_SCAN = "define_import_structure"
_SITE_FOLDERS = ("site-packages", "dist-packages")


@contextmanager
def cached_scans() -> Iterator[None]:
    """While open, importing transformers takes both from the cache; what is not there is scanned, and kept."""
    memory = _Memory()
    finder = _ScanFinder(memory)
    find_distributions = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = lambda: memory.distributions(find_distributions)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        importlib.metadata.packages_distributions = find_distributions
    memory.save()


class _Memory:
    """One file per virtual environment; a key in it tells whether anything was installed since."""

    def __init__(self) -> None:
        self._is_changed = False

    def distributions(self, find: Callable[[], Mapping[str, list[str]]]) -> Mapping[str, list[str]]:
        """Import names to distributions, as `importlib.metadata.packages_distributions` gives them."""
        known = self._entries.get("distributions")
        if isinstance(known, dict):
            return known
        found = find()
        self._keep("distributions", dict(found))
        return found

    def structure(self, scan: Callable[[], Structure]) -> Structure:
        """What the models of transformers export; a new object at every call, because transformers changes it."""
        known = self._entries.get("structure")
        if isinstance(known, list):
            return {frozenset(backends): {m: set(names) for m, names in modules.items()} for backends, modules in known}
        found = scan()
        kept = [[sorted(backends), {m: sorted(names) for m, names in found[backends].items()}] for backends in found]
        self._keep("structure", kept)
        return found

    def save(self) -> None:
        """Keeps what is new for the next start; where nothing can be written, it is not kept."""
        if self._is_changed:
            with suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(self._path, json.dumps({"key": self._key, "entries": self._entries}))

    def _keep(self, name: str, value: object) -> None:
        self._entries[name] = value
        self._is_changed = True

    @cached_property
    def _entries(self) -> dict[str, Any]:
        with suppress(OSError, ValueError, TypeError, KeyError):
            content = json.loads(self._path.read_bytes())
            if content["key"] == self._key:
                return dict(content["entries"])
        return {}

    @cached_property
    def _key(self) -> list[object]:
        """Installing, upgrading and removing a package all change the folder that holds it."""
        folders = [path for path in map(Path, sys.path) if path.name in _SITE_FOLDERS and path.is_dir()]
        return [sys.version, *([str(folder), folder.stat().st_mtime_ns] for folder in folders)]

    @cached_property
    def _path(self) -> Path:
        name = sha256(sys.prefix.encode()).hexdigest()[:16]
        return env.VLLM_CACHE_ROOT.get() / "vllm_cli" / "imports" / f"{name}.json"


class _ScanFinder(MetaPathFinder):
    """Finds the module of transformers that scans, to be loaded with a scan that remembers."""

    def __init__(self, memory: _Memory) -> None:
        self._memory = memory

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != _SCANNING_MODULE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        # Sources that somebody works on, outside of such a folder, change without any sign in it.
        if spec is None or spec.origin is None or not set(_SITE_FOLDERS) & set(Path(spec.origin).parts):
            return None
        spec.loader = _ScanLoader(fullname, spec.origin, self._memory)
        return spec


class _ScanLoader(SourceFileLoader):
    """Loads the module, and puts in a scan that remembers."""

    def __init__(self, fullname: str, path: str, memory: _Memory) -> None:
        super().__init__(fullname, path)
        self._memory = memory

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        scan = getattr(module, _SCAN, None)
        if scan is None:
            return
        models = Path(module.__file__ or "").parents[1] / "models"

        def remembered_scan(module_path: str | Path, prefix: str | None = None) -> Structure:
            if Path(module_path) not in (models, models / "__init__.py"):
                found: Structure = scan(module_path, prefix)
                return found
            structure = self._memory.structure(lambda: scan(str(models)))
            if prefix is None:
                return structure
            return {b: {f"{prefix}.{name}": v for name, v in modules.items()} for b, modules in structure.items()}

        setattr(module, _SCAN, remembered_scan)
