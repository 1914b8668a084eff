"""Puts a template process's memory into huge pages, which makes its forks several times as fast.

A fork copies one entry per page: for 250 MB, 64 000 entries for pages of 4 KiB or 130 for pages of 2 MiB. A
server needs four forks. A fork that writes to a huge page splits it and copies only the 4 KiB written to.
Memory that the server itself allocates is not affected.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from server.machine.libc import load_libc

logger = logging.getLogger(__name__)

_SETTING: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_PAGE_BYTES: Final = 2 << 20
_MADV_COLLAPSE: Final = 25
"""Linux 6.1; older kernels reject it."""


def use_huge_pages() -> int:
    """Moves this process's private memory, if the administrator allows it; returns the number of pages."""
    if not _are_allowed():
        return 0
    madvise = load_libc().madvise
    num_pages = 0
    for begin, end in _private_memory():
        first = -(-begin // _PAGE_BYTES) * _PAGE_BYTES
        for address in range(first, end - _PAGE_BYTES + 1, _PAGE_BYTES):
            num_pages += madvise(address, _PAGE_BYTES, _MADV_COLLAPSE) == 0
    logger.debug("%d MB of memory are in huge pages", num_pages * _PAGE_BYTES >> 20)
    return num_pages


def _are_allowed() -> bool:
    try:
        return "[never]" not in _SETTING.read_text()
    except OSError:  # the kernel has none
        return False


def _private_memory() -> Iterator[tuple[int, int]]:
    """The heap and other writable private memory without a file; no stack."""
    with Path("/proc/self/maps").open("rb") as maps:
        lines = maps.readlines()
    for line in lines:
        addresses, access, _, _, inode, *name = line.split(None, 5)
        if access == b"rw-p" and inode == b"0" and (not name or os.fsdecode(name[0]).strip() == "[heap]"):
            begin, _, end = addresses.partition(b"-")
            yield int(begin, 16), int(end, 16)
