"""Functions of the C library that Python lacks, and the release of free memory in the library's heap."""

import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctypes import CDLL


@cache
def load_libc() -> "CDLL":
    """The C library. Types are declared for arguments and results that are not plain numbers.

    ctypes is imported only in this call, because front processes and the helper of the prefetch must start
    fast.
    """
    import ctypes as c  # noqa: PLC0415

    libc = c.CDLL(None, use_errno=True)
    libc.mmap.restype = c.c_void_p
    libc.mmap.argtypes = (c.c_void_p, c.c_size_t, c.c_int, c.c_int, c.c_int, c.c_int64)
    libc.munmap.argtypes = (c.c_void_p, c.c_size_t)
    libc.mincore.argtypes = (c.c_void_p, c.c_size_t, c.c_char_p)
    libc.madvise.argtypes = (c.c_void_p, c.c_size_t, c.c_int)
    libc.fallocate.argtypes = (c.c_int, c.c_int, c.c_int64, c.c_int64)
    libc.prctl.argtypes = (c.c_int, *[c.c_void_p] * 4)
    libc.sbrk.restype = c.c_void_p
    return libc


def check(result: int, call: str) -> None:
    """Raises OSError for a result other than 0."""
    if result != 0:
        raise last_error(call)


def last_error(call: str) -> OSError:
    """The error of the last call of the C library in this thread."""
    import ctypes  # noqa: PLC0415

    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")


def prctl(option: int, *arguments: Any) -> None:
    """Changes a property of this process (prctl(2)). Raises OSError."""
    missing = [None] * (4 - len(arguments))
    check(load_libc().prctl(option, *arguments, *missing), "prctl")


_MADV_COLLAPSE = 25
"""Exists since Linux 6.1. Older kernels reject it."""
HUGE_PAGE_BYTES = 1 << 21


def huge_page_parts(used: Iterable[range], most_bytes: int) -> Iterator[range]:
    """Joins used address ranges over small gaps, and cuts the result into parts for `use_huge_pages`."""
    begin = end = -HUGE_PAGE_BYTES
    for part in [*sorted(used, key=lambda r: r.start), range(1 << 62, 1 << 62)]:
        if part.start >= end + HUGE_PAGE_BYTES:
            whole = range(-(-begin // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES, end // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES)
            yield from (whole[i : i + most_bytes] for i in range(0, len(whole), most_bytes))
            begin = part.start
        end = max(end, part.stop)


def use_huge_pages(part: range) -> None:
    """Moves memory into pages of 2 MiB, in 0.3 ms per page. Before Linux 6.1, the kernel moves it later.

    If the system has no such pages, nothing happens.
    """
    for advice in (mmap.MADV_HUGEPAGE, _MADV_COLLAPSE):
        load_libc().madvise(part.start, len(part), advice)


def collapse_page(address: int) -> bool:
    """Moves the 2 MiB at an address into a huge page. Memory that is mapped there later is not affected."""
    return load_libc().madvise(address, HUGE_PAGE_BYTES, _MADV_COLLAPSE) == 0  # type: ignore[no-any-return]


_MADV_POPULATE_WRITE = 23


def populate_pages(mapped: range) -> None:
    """Makes the kernel provide the pages of mapped addresses now (madvise(2)). Their content stays.

    Other threads can run meanwhile. Raises OSError if the call fails. Before Linux 5.14, it always fails.
    """
    check(load_libc().madvise(mapped.start, len(mapped), _MADV_POPULATE_WRITE), "madvise")


def trim_heap() -> None:
    """Returns freed memory to the system. Takes some milliseconds. Does nothing without glibc."""
    with suppress(AttributeError):
        load_libc().malloc_trim(0)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER, _MOST_MMAP_THRESHOLD = (1 << 31) - 1, 1 << 25


def keep_freed_memory() -> None:
    """Keeps freed memory until `trim_heap`, except blocks above 32 MiB. Does nothing without glibc.

    By default, glibc returns the memory of large tensors to the system. The next tensors then cause page
    faults: 190,000 in a step of 2048 tokens of a model of 135M parameters, a quarter of the step's time.
    """
    with suppress(AttributeError):
        load_libc().mallopt(_M_MMAP_THRESHOLD, _MOST_MMAP_THRESHOLD)
        load_libc().mallopt(_M_TRIM_THRESHOLD, _NEVER)


class HeapTrimmer:
    """Trims the heap `delay_s` after the last work, and every `interval_s` while work continues."""

    def __init__(self, delay_s: float, interval_s: float) -> None:
        self._delay_s = delay_s
        self._interval_s = interval_s
        self._latest_s = inf
        """The latest monotonic time of the next trimming. More work does not delay it further."""
        self.due_s = inf
        """Monotonic time of the next trimming. Infinite if there is nothing to trim."""

    def postpone(self) -> None:
        """Called after work. Delays the next trimming."""
        now_s = monotonic()
        self._latest_s = min(self._latest_s, now_s + self._interval_s)
        self.due_s = min(now_s + self._delay_s, self._latest_s)

    def trim_if_due(self) -> None:
        """Trims the heap if the time for it has come. Blocks until the end."""
        if monotonic() >= self.due_s:
            trim_heap()
            self.due_s = self._latest_s = inf
