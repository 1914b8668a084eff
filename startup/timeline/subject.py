"""The subject of a start: names, settings and versions that its history and its report need."""

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_METADATA: Final = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)\.(dist-info|egg-info)")


@dataclass(frozen=True, kw_only=True)
class StartSubject:
    """One start of any engine."""

    model: str
    engine: str = "embedded"
    start_method: str
    packages: tuple[str, ...]
    """Distributions whose versions influence the duration of the start."""
    key: Callable[[Mapping[str, str]], str]
    """Returns, for these versions, a name that comparable starts share."""
    report_file: Path | None = None
    trace_file: Path | None = None


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of the packages that are installed; the first folder of `sys.path` that has one counts.

    From the names of metadata folders: reading the metadata takes 30 ms.
    """
    wanted = {package.replace("-", "_").lower(): package for package in packages}
    found: dict[str, str] = {}
    for folder in map(Path, sys.path):
        for name, version in _list_versions(folder):
            if name in wanted:
                found.setdefault(wanted[name], version)
    return dict(sorted(found.items()))


def _list_versions(folder: Path) -> list[tuple[str, str]]:
    try:
        names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    except OSError:
        return []
    matches = filter(None, map(_METADATA.fullmatch, names))
    return [(match["name"].replace("-", "_").lower(), match["version"]) for match in matches]
