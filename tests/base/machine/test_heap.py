"""Freed memory between used blocks goes back to the system."""

import ctypes

import psutil
import pytest

from base.machine.libc import trim_heap

_BLOCK = 16 << 10
"""Less than malloc maps separately."""
_NUM_BLOCKS = 4096


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_freed_blocks_below_a_used_one_go_back_to_the_system():
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    blocks = [libc.malloc(_BLOCK) for _ in range(_NUM_BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, _BLOCK)
    highest = max(blocks)
    for block in blocks:
        if block != highest:
            libc.free(block)
    before = psutil.Process().memory_info().rss
    trim_heap()
    assert before - psutil.Process().memory_info().rss > 0.9 * _NUM_BLOCKS * _BLOCK
    libc.free(highest)
