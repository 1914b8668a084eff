"""Memory in huge pages."""

import ctypes
import mmap

from base.machine.libc import huge_page_parts, use_huge_pages
from tests.base.machine.huge_pages import count_huge_bytes, needs_huge_pages

MIB = 1 << 20


def test_parts_are_whole_pages_of_memory_with_gaps_below_a_page():
    used = [range(9 * MIB, 17 * MIB), range(MIB, 7 * MIB), range(7 * MIB + 64, 8 * MIB), range(21 * MIB, 22 * MIB)]
    parts = [(p.start // MIB, p.stop // MIB) for p in huge_page_parts(used, 8 * MIB)]
    assert parts == [(2, 10), (10, 16)]
    assert list(huge_page_parts([], MIB)) == []


@needs_huge_pages
def test_memory_is_moved_into_huge_pages_and_keeps_its_content():
    pages = mmap.mmap(-1, 8 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_NOHUGEPAGE)
    pages.write(bytes(range(256)) * (8 * MIB // 256))
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    before = count_huge_bytes()
    for part in huge_page_parts([range(address, address + 8 * MIB)], 2 * MIB):
        use_huge_pages(part)
    assert count_huge_bytes() - before >= 6 * MIB
    assert pages[: 8 * MIB] == bytes(range(256)) * (8 * MIB // 256)
