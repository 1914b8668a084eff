"""Checks which pages the page cache has, although the kernel may drop any page. Counts read bytes."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_size_t, c_void_p
from pathlib import Path

import pytest

from base.machine.libc import check, load_libc
from base.machine.page_cache import FileMapping, ResidencyProbe, by_cachestat, by_mincore, read_cachestat

_EVICTED_AFTER_S = 60.0
_LEAST_SHARE = 0.9
_MADV_RANDOM = 1
_IO = Path("/proc/self/io")
_OF_SYSFS = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@contextmanager
def held(path: Path, offset: int = 0, length: int | None = None) -> Iterator[None]:
    """Keeps a range of the file in memory. Reads its missing pages, and no pages around the range."""
    libc = load_libc()
    libc.mlock.argtypes = (c_void_p, c_size_t)
    with path.open("rb") as file:
        mapping = FileMapping(file.fileno(), offset, length or path.stat().st_size - offset)
    with mapping:
        mapping.advise(_MADV_RANDOM)
        try:
            check(libc.mlock(mapping.address, mapping.size), "mlock")
        except OSError as err:
            pytest.skip(f"this user may not keep a file in memory: {err.strerror}")
        yield


def expect_read(path: Path, num_bytes: int | None = None) -> None:
    """Checks that nine tenths of `num_bytes`, or of the file, are in memory or were evicted by the kernel."""
    with ResidencyProbe(str(path)) as probe:
        if probe.method is not by_cachestat:
            pytest.skip("this kernel does not tell pages of this file that it has evicted from those never read")
    size = path.stat().st_size
    with path.open("rb") as file:
        pages = read_cachestat(file.fileno(), 0, size)
    found = (pages.num_cached + pages.num_evicted) * os.sysconf("SC_PAGE_SIZE")
    assert found >= (size if num_bytes is None else num_bytes) * _LEAST_SHARE


def never_cached() -> Path:
    """A file that the page cache never has, because the kernel generates it for each read."""
    if not _OF_SYSFS.exists():
        pytest.skip("there is no such file here")
    return _OF_SYSFS


def resident_bytes(path: Path) -> int:
    with ResidencyProbe(str(path), by_mincore) as probe:
        return probe.resident_bytes()


def evict(path: Path) -> None:
    """Writes the file back and evicts it from the page cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        deadline = time.monotonic() + _EVICTED_AFTER_S
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        while resident_bytes(path) and time.monotonic() < deadline:  # pages that are being written stay resident
            time.sleep(0.02)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    assert resident_bytes(path) == 0, "the file must be evicted before the test"


class BytesRead:
    """The number of bytes that a block has read. It is set when the block ends."""

    num_bytes = 0


@contextmanager
def counting_bytes_read() -> Iterator[BytesRead]:
    """Counts the bytes that read(2) and similar calls return, also from the page cache (`rchar`, proc(5))."""
    if not _IO.exists():
        pytest.skip("this kernel does not count what a process reads")
    counted = BytesRead()
    begin = _read_so_far()
    yield counted
    counted.num_bytes = _read_so_far() - begin


def _read_so_far() -> int:
    return int(dict(line.split(": ") for line in _IO.read_text().splitlines())["rchar"])
