"""Assertions on the page cache, whose pages the kernel may drop at any time, and what this process reads."""

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from base.machine.page_cache import ResidencyProbe, by_mincore

_ATTEMPTS = 3
_EVICTED_AFTER_S = 60.0
_LEAST_SHARE = 0.9
Test = TypeVar("Test", bound=Callable[..., None])
_IO = Path("/proc/self/io")


class PagesLostError(AssertionError):
    """Fewer pages are resident than were read: the program is wrong, or the kernel needed the memory."""


def repeated_if_pages_are_lost(test: Test) -> Test:
    """Repeats a test up to twice if `expect_resident` finds too few pages."""

    @functools.wraps(test)
    def run(*args: object, **kwargs: object) -> None:
        for _ in range(_ATTEMPTS - 1):
            try:
                return test(*args, **kwargs)
            except PagesLostError:
                continue
        return test(*args, **kwargs)

    return run  # type: ignore[return-value]


def expect_resident(path: Path, num_bytes: int | None = None, *, least_share: float = _LEAST_SHARE) -> None:
    """Expects `num_bytes` of the file, or all of it, to be resident; a tenth may be evicted already."""
    wanted = path.stat().st_size if num_bytes is None else num_bytes
    found = resident_bytes(path)
    if found < wanted * least_share:
        raise PagesLostError(f"{found} bytes of {path.name} are resident, expected {wanted}")


def resident_bytes(path: Path, offset: int = 0, length: int | None = None) -> int:
    """The resident bytes of the file or of a range of it."""
    with ResidencyProbe(str(path), by_mincore) as probe:
        return probe.resident_bytes(offset, length)


def evict(path: Path, offset: int = 0, length: int | None = None) -> None:
    """Writes the file back and evicts it, or a range of it, from the page cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        deadline = time.monotonic() + _EVICTED_AFTER_S
        os.posix_fadvise(fd, offset, length or 0, os.POSIX_FADV_DONTNEED)
        while (
            resident_bytes(path, offset, length) and time.monotonic() < deadline
        ):  # pages that are being written stay resident
            time.sleep(0.02)
            os.posix_fadvise(fd, offset, length or 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    assert resident_bytes(path, offset, length) == 0, "the file must be evicted before the test"


class BytesRead:
    """The number of bytes that a block has read; set when the block ends."""

    num_bytes = 0


@contextmanager
def counting_bytes_read() -> Iterator[BytesRead]:
    """Counts as proc(5) does: what read(2) and similar calls return, from the page cache too."""
    if not _IO.exists():
        pytest.skip("this kernel does not count what a process reads")
    counted = BytesRead()
    begin = _read_so_far()
    yield counted
    counted.num_bytes = _read_so_far() - begin


def _read_so_far() -> int:
    counts = dict(line.split(": ") for line in _IO.read_text().splitlines())
    return int(counts["rchar"])
