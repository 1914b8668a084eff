"""The KV cache stores, shares and frees tokens, and commits memory only for stored tokens."""

import errno
import os
from typing import Any

import psutil
import pytest
import torch

from server.engine.memory.kv_cache import CopiedSlots, KVCache, LayerShape
from server.engine.memory.shared_slots import SharedSlots

MIB = 1 << 20
SHAPES = {0: LayerShape(2, 16, 16), 3: LayerShape(2, 16, 16), 1: LayerShape(4, 24, 12)}
CPU = torch.device("cpu")


@pytest.fixture(params=[SharedSlots, CopiedSlots], autouse=True)
def slots_class(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[SharedSlots | CopiedSlots]:
    """The class of the caches' slots. For `CopiedSlots`, memory files are forbidden, as in a sandbox."""

    def forbid(name: str) -> int:
        raise OSError(errno.EPERM, "not permitted")

    if request.param is CopiedSlots:
        monkeypatch.setattr(os, "memfd_create", forbid)
    return request.param  # type: ignore[no-any-return]


def test_reserved_slots_cost_no_memory(slots_class):
    cache = KVCache(
        {layer: LayerShape(8, 128, 128) for layer in range(8)},
        num_slots=128,
        slot_len=8192,
        dtype=torch.bfloat16,
        device=CPU,
    )
    assert type(cache.slots) is slots_class
    reserved = sum(p.numel() * p.element_size() for p in (*cache.keys.values(), *cache.values.values()))
    assert reserved == 32 << 30
    assert _committed(cache) < MIB


@pytest.mark.thorough
def test_a_closed_slots_pages_are_freed():
    cache = KVCache({0: LayerShape(8, 64, 64)}, num_slots=3, slot_len=16384, dtype=torch.float32, device=CPU)
    tokens = torch.randn(16384, 8, 64)
    for slot in (0, 1):
        cache.slots.open(slot)
        cache.store(0, torch.arange(16384) + slot * 16384, tokens, tokens)
    assert 128 * MIB <= _committed(cache) < 129 * MIB
    cache.slots.close(0, 16384)
    assert 64 * MIB <= _committed(cache) < 65 * MIB
    keys, _ = cache.read(0, 1, 2, 16384)
    assert torch.equal(keys[0].transpose(0, 1), tokens)
    cache.slots.close(1, 16384)
    assert _committed(cache) < MIB


@pytest.mark.parametrize("length", [1, 37, 1000])
@pytest.mark.parametrize("slot", [0, 1, 2])
def test_a_closed_slot_reads_as_zeros_and_others_do_not_change(slot, length):
    cache = _cache(num_slots=3, slot_len=1000)
    for i in range(3):
        cache.slots.open(i)
        _fill(cache, i, length)
    before = [_read(cache, i, 1000) for i in range(3)]
    cache.slots.close(slot, length)
    for i in {0, 1, 2} - {slot}:
        assert all(torch.equal(a, b) for a, b in zip(before[i], _read(cache, i, 1000), strict=True))
    assert not any(part.any() for part in _read(cache, slot, 1000))


def test_a_slot_reads_as_stored():
    cache = _cache()
    stride = cache.slot_len
    index = torch.tensor([stride + 5, 2 * stride + 0, stride + 6])
    keys, values = torch.randn(3, 4, 24), torch.randn(3, 4, 12)
    cache.store(1, index, keys, values)
    read_keys, read_values = cache.read(1, 1, 3, 7)
    assert read_keys.shape == (2, 4, 7, 24)
    assert read_values.shape == (2, 4, 7, 12)
    assert torch.equal(read_keys[0, :, 5:7].transpose(0, 1), keys[[0, 2]])
    assert torch.equal(read_values[1, :, 0], values[1])
    assert read_keys.data_ptr() == cache.keys[1][stride].data_ptr(), "reading copies nothing"


@pytest.mark.parametrize("is_running", [True, False], ids=["running", "kept"])
@pytest.mark.parametrize("length", [1, 40, 64, 300])
@pytest.mark.parametrize(("source", "target"), [(0, 2), (2, 0)])
def test_a_slot_begins_with_exactly_the_tokens_of_another(is_running, length, source, target):
    cache = _cache(slot_len=400)
    for slot in (source, 1):
        cache.slots.open(slot)
        _fill(cache, slot, 300)
    expected = _read(cache, source, length)
    beginning: Any = source
    if not is_running:  # what is kept outlives its slot
        beginning = cache.slots.keep(source, 300)
        cache.slots.close(source, 300)
        cache.slots.open(source)
        _fill(cache, source, 400)
    others = [_read(cache, slot, 400) for slot in (source, 1)]
    cache.slots.open(target, beginning, length)
    assert all(torch.equal(a, b) for a, b in zip(expected, _read(cache, target, length), strict=True))
    assert not any(part[:, :, length:].any() for part in _read(cache, target, 400))
    _fill(cache, target, 400, begin=length)
    for slot, before in zip((source, 1), others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, _read(cache, slot, 400), strict=True))


def _cache(*, num_slots: int = 3, slot_len: int = 64) -> KVCache:
    return KVCache(SHAPES, num_slots=num_slots, slot_len=slot_len, dtype=torch.float32, device=CPU)


def _fill(cache: KVCache, slot: int, end: int, begin: int = 0) -> None:
    index = torch.arange(begin, end) + slot * cache.slot_len
    for layer, shape in SHAPES.items():
        cache.store(
            layer,
            index,
            torch.randn(end - begin, shape.num_kv_heads, shape.key_dim),
            torch.randn(end - begin, shape.num_kv_heads, shape.value_dim),
        )


def _read(cache: KVCache, slot: int, length: int) -> list[torch.Tensor]:
    return [part.clone() for layer in SHAPES for part in cache.read(layer, slot, slot + 1, length)]


def _committed(cache: KVCache) -> int:
    """The bytes of the cache's pages that are in memory or in swap."""
    parts = [*cache.keys.values(), *cache.values.values()]
    begin, end = min(p.data_ptr() for p in parts), max(p.data_ptr() + p.nbytes for p in parts)
    return sum(
        area.rss + area.swap
        for area in psutil.Process().memory_maps(grouped=False)
        for first, last in [(int(address, 16) for address in area.addr.split("-"))]
        if first < end and begin < last
    )
