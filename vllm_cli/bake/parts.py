"""The parts of a baked folder, with their files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from startup.caches import BYTECODE, CACHE, OWN, PAGES
from startup.vllm.launch.baked_caches import FOR_ANY_HARDWARE

HISTORY: Final = "start history"
PROFILES: Final = "preload profile"
SCANS: Final = "package scan"
IMPORTS: Final = "import file"
INSPECTIONS: Final = "model inspection"
COMPILED: Final = "compile caches"
BYTECODES: Final = "bytecode"
READ_PAGES: Final = "pages to prefetch"
NO_START: Final = "a start with a request"

_OWN_PARTS: Final = {
    HISTORY: "history.jsonl",
    PROFILES: "preload/*.json",
    SCANS: "imports/*.json",
    IMPORTS: "imports/*.code",
}
"""Patterns of files."""


class Part(NamedTuple):
    """One part of a baked folder."""

    name: str
    paths: tuple[Path, ...]

    @property
    def files(self) -> list[Path]:
        """Its files; none if it is missing."""
        found = (file for path in self.paths for file in ((path,) if path.is_file() else sorted(path.rglob("*"))))
        return [file for file in found if file.is_file()]

    @property
    def num_bytes(self) -> int:
        """The files' sizes."""
        return sum(file.stat().st_size for file in self.files)


def parts_of(folder: Path) -> Iterator[Part]:
    """All parts, also those that are missing."""
    cache = folder / CACHE
    for name, pattern in _OWN_PARTS.items():
        yield Part(name, tuple(sorted((cache / OWN).glob(pattern))))
    yield Part(INSPECTIONS, tuple(cache / name for name in FOR_ANY_HARDWARE))
    others = cache.iterdir() if cache.is_dir() else ()
    yield Part(COMPILED, tuple(sorted(path for path in others if path.name not in (OWN, *FOR_ANY_HARDWARE))))
    yield Part(BYTECODES, (folder / BYTECODE,))
    yield Part(READ_PAGES, (folder / PAGES,))
