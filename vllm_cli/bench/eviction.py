"""Evicts files from the page cache before a start."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from base.machine.page_cache import ResidencyProbe
from vllm_cli.errors import InputError


class Residency(NamedTuple):
    """How much of some files is in memory."""

    total_bytes: int
    resident_bytes: int


def list_files(paths: Iterable[Path]) -> list[Path]:
    """The files among the paths and in the folders among them, each once and with links resolved."""
    files = (file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path]))
    return list(dict.fromkeys(real for file in files if (real := file.resolve()).is_file()))


def evict_files(files: Sequence[Path]) -> Residency:
    """Drops the files' pages, and writes back those that are changed; returns what stayed in memory.

    Pages that another process has mapped stay, and so do files on tmpfs. Writing back takes a millisecond per
    file, whether or not it is changed. Raises InputError if a file cannot be opened.
    """
    try:
        for file in files:
            _drop(file)
        for file in files:
            if measure_residency([file]).resident_bytes:
                _drop(file, writes_back=True)
        return measure_residency(files)
    except OSError as err:
        raise InputError(f"The page cache cannot be emptied of {err.filename or 'the files'}: {err.strerror}") from err


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
