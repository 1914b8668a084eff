"""Measures how much of a file is in the page cache, with the cheapest system call that sees its pages.

For 3.2 GB in 4 files, cachestat(2) (Linux 6.5 and later) takes 0.3 ms, and mincore(2) takes 48 ms. Files of
overlayfs have no pages of their own: cachestat finds no pages, and mincore finds the pages of the underlying
file. If this user neither owns a file nor may write to it, mincore reports every page as resident, and the
kernel may deny cachestat. In this case, page faults (Linux 5.14) test samples of the file. A sample takes 14
microseconds, or a disk access.

A method is used on a file system only after a test in which it saw a page that had just been read. The helper
process of the prefetch imports this module, so it imports few modules.
"""

import ctypes
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from functools import cache

from base.machine.cgroups import mount_fields
from base.machine.libc import check, last_error, load_libc

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_SAMPLE_BYTES = 16 << 20
_SYS_CACHESTAT = 451
_PROT_READ = 1
_MAP_SHARED = 1
_MAP_PRIVATE_ANONYMOUS = 0x22
_MAP_FAILED = ctypes.c_void_p(-1).value
_MADV_RANDOM = 1
_MADV_POPULATE_READ = 22

Method = Callable[[int, int, int], int]
"""Takes a descriptor, an offset and a length. Returns the bytes in the page cache. Raises OSError."""


_sights: dict[tuple[int, Method], tuple[bool, bool]] = {}
"""(device number (see stat(2)), method) -> whether it sees pages, and whether they stay (`_test`)."""


def memory_devices() -> set[int]:
    """Device numbers (see stat(2)) of file systems whose files are always in memory. Empty if unknown."""
    kinds = ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs")
    numbers = [mount[2].split(":") for mount, (kind, *_) in mount_fields() if kind in kinds]
    return {os.makedev(int(major), int(minor)) for major, minor in numbers}


class ResidencyProbe(AbstractContextManager["ResidencyProbe"]):
    """A context manager that measures one file. It reads at most one page, and restores this page's state."""

    def __init__(self, path: str, method: Method | None = None) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.method = method
        """The method for this file. None if no method can measure it."""
        self.keeps_pages = True
        """False if the file system drops a file's pages each time the file is opened."""
        if method is None and os.fstat(self._fd).st_size:
            self.method, self.keeps_pages = _choose_method(path, self._fd)

    def resident_bytes(self, offset: int = 0, length: int | None = None) -> int:
        """Resident bytes of the range, in whole pages up to the file's end. 0 if they cannot be measured."""
        end = os.fstat(self._fd).st_size
        if length is not None:
            end = min(end, offset + length)
        return self.method(self._fd, offset, end - offset) if self.method and end > offset else 0

    def estimated_bytes(self, offset: int, length: int) -> int:
        """Like `resident_bytes`, but fast: tests one page with mincore. Returns 0 with slower methods."""
        if self.method is by_mincore:
            return length if by_mincore(self._fd, offset + length // 2, 1) else 0
        return self.resident_bytes(offset, length) if self.method is by_cachestat else 0

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _choose_method(path: str, fd: int) -> tuple[Method | None, bool]:
    """The cheapest method that sees the file's pages, and whether pages stay when the file is opened again.

    The owner of the file decides which methods are allowed. The file system decides which pages a method
    sees, so test results are cached by file system. In Linux 6.18, all files of an overlay behave in the same
    way, whatever their layer and its file system.
    """
    device = os.fstat(fd).st_dev
    for method in _allowed_methods(fd):
        with suppress(OSError):
            if (device, method) not in _sights:
                _sights[device, method] = _test(method, path, fd)
            sees_pages, keeps_pages = _sights[device, method]
            if sees_pages:
                return method, keeps_pages
    return None, True


def _allowed_methods(fd: int) -> Iterator[Method]:
    """Yields the methods that report correctly for a file of this owner. The cheapest method comes first."""
    if not _kernel_reports():
        return
    try:
        by_cachestat(fd, 0, 1)
    except OSError:
        pass
    else:
        yield by_cachestat
    if _is_own(fd):
        yield by_mincore
    yield by_faults


def _test(method: Method, path: str, fd: int) -> tuple[bool, bool]:
    """Drops the first page, reads it, and restores its state. The kernel does not drop a page in use."""
    was_resident = method(fd, 0, 1)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    os.posix_fadvise(fd, 0, _PAGE_BYTES, os.POSIX_FADV_DONTNEED)
    os.pread(fd, 1, 0)
    sees_pages = method(fd, 0, 1) > 0
    with ResidencyProbe(path, method) as again:
        keeps_pages = again.resident_bytes(0, 1) > 0
    if not was_resident:
        os.posix_fadvise(fd, 0, _PAGE_BYTES, os.POSIX_FADV_DONTNEED)
    return sees_pages, keeps_pages


def by_cachestat(fd: int, offset: int, length: int) -> int:
    """Counts resident bytes with cachestat(2). Raises OSError if the kernel lacks or denies the call."""
    return min(int(read_cachestat(fd, offset, length).num_cached) * _PAGE_BYTES, length)


def read_cachestat(fd: int, offset: int, length: int) -> "CacheStat":
    """The kernel's counts of a range's pages in each state."""
    answer = CacheStat()
    wanted = _Range(offset, length)
    code = load_libc().syscall(_SYS_CACHESTAT, fd, ctypes.byref(wanted), ctypes.byref(answer), 0)
    check(code, "cachestat")
    return answer


def by_mincore(fd: int, offset: int, length: int) -> int:
    """Counts resident bytes with mincore(2). The range is mapped for this, but not read."""
    with FileMapping(fd, offset, length) as mapping:
        return min(mapping.num_resident() * _PAGE_BYTES, length)


def by_faults(fd: int, offset: int, length: int) -> int:
    """Estimates resident bytes by page faults on one page in the middle of each 16 MiB."""
    samples = range(offset + min(length, _SAMPLE_BYTES) // 2, offset + length, _SAMPLE_BYTES)
    return length * sum(_is_resident(fd, sample) for sample in samples) // len(samples)


def _is_resident(fd: int, offset: int) -> bool:
    """Whether the page can be mapped without disk access. A page that was not resident is dropped again."""
    with FileMapping(fd, offset, 1) as mapping:
        mapping.advise(_MADV_RANDOM)
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_majflt
        mapping.advise(_MADV_POPULATE_READ)  # an ordinary access could end in a signal
        is_resident = resource.getrusage(resource.RUSAGE_THREAD).ru_majflt == before
    if not is_resident:
        os.posix_fadvise(fd, offset - offset % _PAGE_BYTES, _PAGE_BYTES, os.POSIX_FADV_DONTNEED)
    return is_resident


def _is_own(fd: int) -> bool:
    """Whether mincore works on this file. Since Linux 5.2, the user must own the file or may write to it."""
    if os.fstat(fd).st_uid == os.geteuid():
        return True
    return os.access(f"/proc/self/fd/{fd}", os.W_OK, effective_ids=True)


@cache
def _kernel_reports() -> bool:
    """Whether the kernel reports untouched memory correctly. gVisor reports such memory as resident."""
    try:
        with FileMapping(-1, 0, 1, _MAP_PRIVATE_ANONYMOUS) as mapping:
            return mapping.num_resident() == 0
    except OSError:  # mincore is denied; the other calls may still be right
        return True


class FileMapping(AbstractContextManager["FileMapping"]):
    """A context manager that maps the pages of a range of a file, without accessing them."""

    def __init__(self, fd: int, offset: int, length: int, flags: int = _MAP_SHARED) -> None:
        begin = offset - offset % _PAGE_BYTES
        self.size = offset + length - begin
        self._libc = load_libc()
        self.address = self._libc.mmap(None, self.size, _PROT_READ, flags, fd, begin)
        if self.address == _MAP_FAILED:
            raise last_error("mmap")

    def num_resident(self) -> int:
        flags = ctypes.create_string_buffer(-(-self.size // _PAGE_BYTES))
        check(self._libc.mincore(self.address, self.size, flags), "mincore")
        return flags.raw.count(1)

    def advise(self, advice: int) -> None:
        check(self._libc.madvise(self.address, self.size, advice), "madvise")

    def __exit__(self, *_: object) -> None:
        self._libc.munmap(self.address, self.size)


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class CacheStat(ctypes.Structure):
    """The kernel's struct cachestat."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("num_cached", "num_dirty", "num_in_writeback", "num_evicted", "num_recently_evicted")
    )
