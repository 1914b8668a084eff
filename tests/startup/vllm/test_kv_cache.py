"""The memory of vLLM's KV cache is zeros, as with torch. Other threads have populated its pages."""

import importlib
import threading
from collections.abc import Iterator
from ctypes import create_string_buffer
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from base.machine.libc import check, load_libc
from startup.imports.finder import place
from startup.vllm.patches import kv_cache
from startup.vllm.patches.kv_cache import KV_CACHE

NUM_BYTES = kv_cache._LEAST_BYTES + 4096
PAGE = 4096
ALLOCATION = """
import torch

def allocate_kv_cache(buf_size, device):
    buf = torch.zeros(buf_size, dtype=torch.int8, device=device)
    return buf

def small():
    return torch.zeros(3, dtype=torch.int8, device="cpu"), torch.zeros((2, 2)), isinstance(torch.ones(1), torch.Tensor)
"""


@pytest.fixture
def module(toys: Any) -> Iterator[ModuleType]:
    """The relevant part of vLLM's module, imported with the hook."""
    toys.write("vllm.v1.worker.utils", ALLOCATION)
    place(KV_CACHE)
    place(KV_CACHE)
    yield importlib.import_module("vllm.v1.worker.utils")
    wait_for_pages()


def wait_for_pages() -> None:
    for thread in threading.enumerate():
        if thread.name == "kv-cache-pages":
            thread.join(60)
            assert not thread.is_alive()


def num_resident(cache: torch.Tensor) -> int:
    """The number of pages in memory (mincore(2))."""
    pages = create_string_buffer(-(-cache.nbytes // PAGE))
    check(load_libc().mincore(cache.data_ptr(), cache.nbytes, pages), "mincore")
    return sum(byte & 1 for byte in pages.raw)


def test_what_vllm_writes_while_pages_are_populated_stays(module):
    cache = module.allocate_kv_cache(NUM_BYTES, torch.device("cpu"))
    cache[:: PAGE * 3] = 7
    wait_for_pages()
    assert (cache.dtype, cache.shape, cache.device.type) == (torch.int8, (NUM_BYTES,), "cpu")
    assert torch.equal(cache[:: PAGE * 3], torch.full((-(-NUM_BYTES // (PAGE * 3)),), 7, dtype=torch.int8))
    cache[:: PAGE * 3] = 0
    assert not cache.any()
    assert num_resident(cache) == -(-NUM_BYTES // PAGE)


def test_if_memory_is_scarce_all_pages_are_there_before_vllm_goes_on(module, monkeypatch):
    monkeypatch.setattr(kv_cache, "available_bytes", lambda: 2 * NUM_BYTES - 8192)
    assert num_resident(module.allocate_kv_cache(NUM_BYTES, "cpu")) == -(-NUM_BYTES // PAGE)
    assert not any(thread.name == "kv-cache-pages" for thread in threading.enumerate())


def test_a_kernel_that_cannot_populate_pages_leaves_the_cache_to_torch(module, monkeypatch):
    monkeypatch.setattr(kv_cache, "populate_pages", Mock(side_effect=OSError(22, "Invalid argument")))
    assert not module.allocate_kv_cache(NUM_BYTES, "cpu").any()


def test_a_cache_that_is_too_large_fails_as_without_the_hook(module):
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        module.allocate_kv_cache(1 << 60, "cpu")


def test_other_tensors_and_names_are_torchs_own(module):
    small, matrix, is_tensor = module.small()
    assert (small.tolist(), matrix.shape, matrix.dtype, is_tensor) == ([0, 0, 0], (2, 2), torch.float32, True)
    assert module.allocate_kv_cache(NUM_BYTES, "meta").is_meta
