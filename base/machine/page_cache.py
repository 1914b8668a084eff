"""Measures how much of a file is in the page cache, with the cheapest correct system call.

For 3.2 GB in 4 files, cachestat(2) (Linux 6.5 and later) takes 0.3 ms, mincore(2) 48 ms, and preadv2(2) with
RWF_NOWAIT 97 to 460 ms. preadv2 also starts to read the pages it tests, so it tests samples, with a
descriptor without read-ahead. It is needed for a file that this user neither owns nor may write: mincore then
reports every page as resident, and cachestat fails.

The helper process imports this module, so it must stay light.
"""

import ctypes
import os
from collections.abc import Callable

from base.machine.cgroups import mount_fields
from base.machine.libc import check, last_error, load_libc

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_SAMPLE_BYTES = 1 << 20
_SYS_CACHESTAT = 451
_PROT_READ = 1
_MAP_SHARED = 1
_MAP_FAILED = ctypes.c_void_p(-1).value

Method = Callable[[int, int, int], int]
"""Takes a descriptor, an offset and a length; returns the resident bytes."""


_MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs")


def memory_devices() -> set[int]:
    """Device numbers, as in stat(2), of file systems whose files are always in memory; empty if unknown."""
    fields = [mount for mount, (kind, *_) in mount_fields() if kind in _MEMORY_FILE_SYSTEMS]
    return {os.makedev(*map(int, mount[2].split(":"))) for mount in fields}


class ResidencyProbe:
    """Measures one file; a context manager."""

    def __init__(self, path: str, method: Method | None = None) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.method = method or choose_method(self._fd)

    def resident_bytes(self, offset: int = 0, length: int | None = None) -> int:
        """Resident bytes of the range, in whole pages up to the file's end."""
        end = os.fstat(self._fd).st_size
        if length is not None:
            end = min(end, offset + length)
        return self.method(self._fd, offset, end - offset) if end > offset else 0

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> "ResidencyProbe":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def choose_method(fd: int) -> Method:
    """The cheapest method that works for the file."""
    try:
        by_cachestat(fd, 0, 1)
    except OSError:
        return by_mincore if _is_mincore_correct(fd) else by_samples
    return by_cachestat


def is_cheap(path: str) -> bool:
    """Whether measuring the file takes only a fraction of a millisecond."""
    with ResidencyProbe(path) as probe:
        return probe.method is by_cachestat


def by_cachestat(fd: int, offset: int, length: int) -> int:
    """Raises OSError if the kernel does not have the call or denies it."""
    answer = _CacheStat()
    wanted = _Range(offset, length)
    result = load_libc().syscall(_SYS_CACHESTAT, fd, ctypes.byref(wanted), ctypes.byref(answer), 0)
    check(result, "cachestat")
    return min(int(answer.num_cached) * _PAGE_BYTES, length)


def by_mincore(fd: int, offset: int, length: int) -> int:
    """Maps the range without reading it."""
    begin = offset - offset % _PAGE_BYTES
    size = offset + length - begin
    flags = ctypes.create_string_buffer(-(-size // _PAGE_BYTES))
    libc = load_libc()
    address = libc.mmap(None, size, _PROT_READ, _MAP_SHARED, fd, begin)
    if address == _MAP_FAILED:
        raise last_error("mmap")
    try:
        check(libc.mincore(address, size, flags), "mincore")
    finally:
        libc.munmap(address, size)
    return min(flags.raw.count(1) * _PAGE_BYTES, length)


def by_samples(fd: int, offset: int, length: int) -> int:
    """Tests one page per MiB; the kernel reads tested pages that are not resident, but none around them."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    samples = [*range(offset, offset + length, _SAMPLE_BYTES), offset + length - 1]
    return length * sum(_is_resident(fd, position) for position in samples) // len(samples)


def _is_resident(fd: int, offset: int) -> bool:
    try:
        return os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False


def _is_mincore_correct(fd: int) -> bool:
    """Whether mincore works: since Linux 5.2 only for users who own the file or may write to it."""
    return os.fstat(fd).st_uid == os.geteuid() or os.access(f"/proc/self/fd/{fd}", os.W_OK, effective_ids=True)


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _CacheStat(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("num_cached", "num_dirty", "num_in_writeback", "num_evicted", "num_recently_evicted")
    )
