"""Memory in huge pages, and freed memory that stays in the heap."""

import ctypes
import mmap

import pytest

from base.machine.libc import huge_page_parts, use_huge_pages
from tests.base.machine.huge_pages import count_huge_bytes, needs_huge_pages
from tests.support.cli import python_output

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


_ALLOCATIONS = """
import resource
import torch
from base.machine import libc
from server.engine.idle_work import IdleWork

class Core:
    has_work = False
    def prepare(self):
        return iter(())

class Imports:
    def restore(self):
        return False

def count_faults(num_bytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        tensors = [torch.ones(num_bytes, dtype=torch.uint8) for _ in range(3)]
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

idle = IdleWork(Core(), Imports())
idle.note_request()
while idle.due_s < float("inf"):
    idle.run_if_due(0.0)
print(*[(count_faults(size << 20), count_faults(size << 20))[1] for size in (1, 2, 6, 8, 12, 31)])
libc.trim_heap()
print(count_faults(31 << 20))
"""


@pytest.mark.thorough  # imports torch
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_steps_of_a_prepared_engine_use_the_same_memory_again():
    """Tensors of any size cause page faults only in the first step, and after the heap is trimmed."""
    later, after_trim = python_output(_ALLOCATIONS).splitlines()
    one_step = 3 * 31 * MIB // mmap.PAGESIZE
    assert max(map(int, later.split())) < one_step / 100
    assert int(after_trim) > one_step / 2
