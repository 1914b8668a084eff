"""The KV cache stores, copies and releases tokens, and commits memory only for stored ones."""

import re
from pathlib import Path

import pytest
import torch

from server.engine.kv_cache import KVCache, LayerShape

MIB = 1 << 20
SHAPES = {0: LayerShape(2, 16, 16), 3: LayerShape(2, 16, 16), 1: LayerShape(4, 24, 12)}
CPU = torch.device("cpu")


def test_reserved_slots_cost_no_memory() -> None:
    cache = KVCache(
        {layer: LayerShape(8, 128, 128) for layer in range(8)},
        num_slots=128,
        slot_len=8192,
        dtype=torch.bfloat16,
        device=CPU,
    )
    reserved = sum(p.numel() * p.element_size() for p in (*cache.keys.values(), *cache.values.values()))
    assert reserved == 32 << 30
    assert _committed(cache) < MIB


def test_a_released_slots_pages_are_freed() -> None:
    cache = KVCache({0: LayerShape(8, 64, 64)}, num_slots=3, slot_len=16384, dtype=torch.float32, device=CPU)
    tokens = torch.randn(16384, 8, 64)
    for slot in (0, 1):
        cache.store(0, torch.arange(16384) + slot * 16384, tokens, tokens)
    assert 128 * MIB <= _committed(cache) < 129 * MIB
    cache.release(0, 16384)
    assert 64 * MIB <= _committed(cache) < 65 * MIB
    keys, _ = cache.read(0, 1, 2, 16384)
    assert torch.equal(keys[0].transpose(0, 1), tokens)
    cache.release(1, 16384)
    assert _committed(cache) < MIB


@pytest.mark.parametrize("length", [1, 37, 1000])
@pytest.mark.parametrize("slot", [0, 1, 2])
def test_a_released_slot_reads_as_zeros_and_others_do_not_change(slot: int, length: int) -> None:
    cache = _cache(num_slots=3, slot_len=1000)
    for i in range(3):
        _fill(cache, i, 1000)
    before = [_read(cache, i, 1000) for i in range(3)]
    cache.release(slot, length)
    for i in {0, 1, 2} - {slot}:
        assert all(torch.equal(a, b) for a, b in zip(before[i], _read(cache, i, 1000), strict=True))
    for part, old in zip(_read(cache, slot, 1000), before[slot], strict=True):
        assert not part[:, :, :length].any()
        assert torch.equal(part[:, :, length:], old[:, :, length:])


def test_a_slot_reads_as_stored() -> None:
    cache = _cache()
    index = torch.tensor([64 + 5, 2 * 64 + 0, 64 + 6])
    keys, values = torch.randn(3, 4, 24), torch.randn(3, 4, 12)
    cache.store(1, index, keys, values)
    read_keys, read_values = cache.read(1, 1, 3, 7)
    assert read_keys.shape == (2, 4, 7, 24)
    assert read_values.shape == (2, 4, 7, 12)
    assert torch.equal(read_keys[0, :, 5:7].transpose(0, 1), keys[[0, 2]])
    assert torch.equal(read_values[1, :, 0], values[1])
    assert read_keys.data_ptr() == cache.keys[1][64].data_ptr(), "reading copies nothing"


@pytest.mark.parametrize("length", [1, 40, 64])
def test_a_snapshot_is_restored_exactly_and_only_up_to_its_length(length: int) -> None:
    cache = _cache()
    _fill(cache, 0, 64)
    expected = _read(cache, 0, length)
    parts = cache.snapshot(0, 64)
    _fill(cache, 0, 64)
    _fill(cache, 2, 64)
    behind = [p[:, :, length:].clone() for p in _read(cache, 2, 64)]
    cache.restore(2, parts, length)
    assert all(torch.equal(a, b) for a, b in zip(expected, _read(cache, 2, length), strict=True))
    assert all(torch.equal(a, b[:, :, length:]) for a, b in zip(behind, _read(cache, 2, 64), strict=True))


@pytest.mark.parametrize(("source", "target"), [(0, 2), (2, 0)])
def test_a_prefix_is_copied_exactly_and_only_up_to_its_length(source: int, target: int) -> None:
    cache = _cache()
    for slot in range(3):
        _fill(cache, slot, 64)
    before = [_read(cache, slot, 64) for slot in range(3)]
    cache.copy_prefix(source, target, 30)
    for part, a, b in zip(_read(cache, target, 64), before[source], before[target], strict=True):
        assert torch.equal(part[:, :, :30], a[:, :, :30])
        assert torch.equal(part[:, :, 30:], b[:, :, 30:])
    for slot in {0, 1, 2} - {target}:
        assert all(torch.equal(a, b) for a, b in zip(before[slot], _read(cache, slot, 64), strict=True))


def test_a_new_cache_is_zero() -> None:
    cache = _cache()
    assert not any(part.any() for part in (*cache.keys.values(), *cache.values.values()))


def _cache(*, num_slots: int = 3, slot_len: int = 64) -> KVCache:
    return KVCache(SHAPES, num_slots=num_slots, slot_len=slot_len, dtype=torch.float32, device=CPU)


def _fill(cache: KVCache, slot: int, length: int) -> None:
    index = torch.arange(length) + slot * cache.slot_len
    for layer, shape in SHAPES.items():
        cache.store(
            layer,
            index,
            torch.randn(length, shape.num_kv_heads, shape.key_dim),
            torch.randn(length, shape.num_kv_heads, shape.value_dim),
        )


def _read(cache: KVCache, slot: int, length: int) -> list[torch.Tensor]:
    return [part.clone() for layer in SHAPES for part in cache.read(layer, slot, slot + 1, length)]


def _committed(cache: KVCache) -> int:
    """Bytes of the cache's pages in memory or swapped out, without the rest of the process."""
    begin = min(p.data_ptr() for p in (*cache.keys.values(), *cache.values.values()))
    areas = re.split(r"^([0-9a-f]+)-([0-9a-f]+) ", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    for first, last, facts in zip(areas[1::3], areas[2::3], areas[3::3], strict=True):
        if int(first, 16) <= begin < int(last, 16):
            return sum(int(kib) << 10 for kib in re.findall(r"^(?:Rss|Swap): +(\d+) kB", facts, re.MULTILINE))
    raise AssertionError("the cache is in no mapped area")
