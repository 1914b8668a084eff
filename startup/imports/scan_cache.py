"""Caches results on disk that transformers would compute from the same files at each import.

transformers reads the sources of all its models to find the names they export, and maps every installed
package to its distribution, in 0.3 s each. Both results depend only on the installed packages. The first
start computes them in half of the time, from the parts of the files that matter.
"""

import csv
import functools
import importlib.metadata
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import ModuleType, SimpleNamespace
from typing import Any, Final, TypeAlias

from startup.hook import Hook, Name, Text
from startup.imports.distributions import distribution_stamps
from startup.imports.finder import after_import, cancel
from startup.storage.caches import CachedValue, Value

_SCAN: Final = Name("transformers.utils.import_utils", "define_import_structure", ("module_path", "prefix"))
CACHED_SCANS: Final = Hook(
    "cached scans",
    does="keeps on disk which names transformers' models export",
    without="every start reads the sources of all models",
    gain_in=("CPU, eager, later", "embedded, eager, later", "stand-in, compiled, later"),
    needs=(_SCAN,),
)
_FETCH_ALL: Final = Name(_SCAN.module, "fetch__all__", ("file_content",))
SHORT_SOURCES: Final = CACHED_SCANS.part(
    _FETCH_ALL,
    Text(
        _SCAN.module,
        r'def fetch__all__\(.*?startswith\("__all__"\):\n +start_index = index\n.*?lines = lines\[start_index:\]',
        "a search for the last line with __all__",
    ),
)
_FIND_NAMES: Final = ("_top_level_declared", "_top_level_inferred")
"""Functions of `importlib.metadata` that find the packages of a distribution."""

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
    find = _find_distributions if all(hasattr(importlib.metadata, name) for name in _FIND_NAMES) else find_distributions
    importlib.metadata.packages_distributions = lambda: _cached_or_new("distributions", dict, find)
    if _SCAN.module not in sys.modules:
        after_import(_SCAN.module, _replace_scan)
    try:
        yield
    finally:
        cancel(_SCAN.module, _replace_scan)
        importlib.metadata.packages_distributions = find_distributions


def _cached_or_new(
    name: str, convert: Callable[[Any], Value], compute: Callable[[], Value], present: object = ()
) -> Value:
    """Returns the cached value, or computes and caches it. It is valid for these packages and `present`."""
    cached = CachedValue("imports", (sys.prefix, name), (sys.version, distribution_stamps(), present))
    if (value := cached.read(convert)) is None:
        cached.write(value := compute())
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
        names = sorted(path.name for path in models.iterdir() if path.name != "__pycache__")
        return _cached_or_new("structure", list, lambda: _to_json(_scan(module, scan, str(models))), names)

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


def _scan(module: ModuleType, scan: Callable[[str], Structure], models: str) -> Structure:
    """Calls `scan`, which then reads each source from its last line with `__all__` on: what it looks for."""
    if not SHORT_SOURCES.applies:
        return scan(models)
    fetch = _FETCH_ALL.get(module)
    _FETCH_ALL.replace(module, lambda content: fetch(content[content.rfind("\n__all__") + 1 :]))
    try:
        return scan(models)
    finally:
        _FETCH_ALL.replace(module, fetch)


def _find_distributions() -> Mapping[str, list[str]]:
    """Does what `importlib.metadata.packages_distributions` does with a path for each installed file."""
    declared, inferred = (getattr(importlib.metadata, name) for name in _FIND_NAMES)
    found = defaultdict(list)
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        for package in declared(distribution) or inferred(_with_few_files(distribution)):
            found[package].append(name)
    return dict(found)


def _with_few_files(distribution: importlib.metadata.Distribution) -> Any:
    """Stands for the distribution. Has one source and one other file of each folder at the top."""
    record = distribution.read_text("RECORD")
    if not record:
        return distribution
    return SimpleNamespace(files=list(map(PurePosixPath, _few(record.splitlines()))))


def _few(record: Iterable[str]) -> Iterator[str]:
    known = set()
    for path, *_ in filter(None, csv.reader(record)):
        top, is_inside, _ = path.partition("/")
        kind = (top, path.endswith(".py"))
        if not is_inside or kind not in known:
            known.add(kind)
            yield path
