"""Evicts files from the page cache, and measures how much of them the kernel still holds in memory."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from server.machine.page_cache import ResidencyProbe


class Residency(NamedTuple):
    """How much of some files is in memory."""

    total_bytes: int
    resident_bytes: int

    @property
    def share(self) -> float:
        return self.resident_bytes / self.total_bytes if self.total_bytes else 0.0


def evict_files(files: Sequence[Path]) -> Residency:
    """Drops the files' pages, and writes back those that are changed; returns what stayed in memory.

    Pages that another process has mapped stay, and so do files on tmpfs. Writing back takes a millisecond per
    file, whether or not it is changed.

    Raises:
        OSError: a file cannot be opened, or the system cannot do it.
    """
    for file in files:
        _drop(file)
    for file in files:
        if measure_residency([file]).resident_bytes:
            _drop(file, writes_back=True)
    return measure_residency(files)


def measure_residency(files: Iterable[Path]) -> Residency:
    """How much of the files is in memory, from cachestat(2) or mincore(2); reads no page."""
    total_bytes = resident_bytes = 0
    for file in files:
        with ResidencyProbe(str(file)) as probe:
            total_bytes += file.stat().st_size
            resident_bytes += probe.resident_bytes()
    return Residency(total_bytes, resident_bytes)


def _drop(file: Path, *, writes_back: bool = False) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        if writes_back:
            os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def list_files(paths: Iterable[Path]) -> list[Path]:
    """The files among the paths and in the folders among them, each once and with links resolved."""
    found: dict[Path, None] = {}
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            real = file.resolve()
            if real.is_file():
                found[real] = None
    return list(found)
