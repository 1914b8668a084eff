"""What tests on the page cache share: the kernel may drop any page at any time, which is no fault of the program."""

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from startup.prefetch.residency import ResidencyProbe, by_mincore

_ATTEMPTS = 3
_EVICTED_AFTER_S = 60.0
_LEAST_SHARE = 0.9

Test = TypeVar("Test", bound=Callable[..., None])


class PagesLostError(AssertionError):
    """Fewer pages are in memory than were put there: the program's fault, or the kernel needed the memory."""


def repeated_if_pages_are_lost(test: Test) -> Test:
    """Runs a test again, up to twice, where `expect_resident` finds too little; what else is wrong fails at once."""

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
    """So much of the file is in memory, or all of it, but for the tenth that may be gone already."""
    wanted = path.stat().st_size if num_bytes is None else num_bytes
    found = resident_bytes(path)
    if found < wanted * least_share:
        raise PagesLostError(f"{found} bytes of {path.name} are in memory, not {wanted}")


def resident_bytes(path: Path, offset: int = 0, length: int | None = None) -> int:
    """How much of the file, or of a range of it, is in memory now."""
    with ResidencyProbe(str(path), by_mincore) as probe:
        return probe.resident_bytes(offset, length)


def evict(path: Path, offset: int = 0, length: int | None = None) -> None:
    """Writes the file back and drops it, or a range of it, from memory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        deadline = time.monotonic() + _EVICTED_AFTER_S
        os.posix_fadvise(fd, offset, length or 0, os.POSIX_FADV_DONTNEED)
        while resident_bytes(path, offset, length) and time.monotonic() < deadline:  # pages under way to the disk
            time.sleep(0.02)
            os.posix_fadvise(fd, offset, length or 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    assert resident_bytes(path, offset, length) == 0, "the test's premise: the file is cold"
