"""The cache manager gives memory to sequences, and takes it from the prefix cache if needed."""

import logging

import torch

from server.engine.memory.cache_manager import CacheManager
from server.engine.memory.kv_cache import CopiedSlots, KVCache, LayerShape
from server.engine.memory.prefix_cache import PrefixCache
from tests.server.engine.teacher_forcing import as_sequences
from tests.server.engine.tiny_models import random_prompts


class _SmallGpuSlots(CopiedSlots):
    """Fake memory of a GPU, without room once `is_full` is true."""

    is_full = False

    def keep(self, slot: int, length: int) -> list[torch.Tensor]:
        if self.is_full:
            raise torch.OutOfMemoryError
        return super().keep(slot, length)


def test_a_gpu_without_room_for_an_ended_sequence_empties_the_prefix_cache(caplog):
    kv_cache = _kv_cache()
    kv_cache.slots = slots = _SmallGpuSlots(
        num_slots=2, slot_len=100, part_sizes=[4, 4], dtype=torch.float32, device=torch.device("cpu")
    )
    prefixes = PrefixCache(slots, max_tokens=90)
    cache = CacheManager(num_slots=2, max_tokens=100, kv_cache=kv_cache, prefixes=prefixes)
    _complete(cache, *random_prompts(40, seed=40))
    assert prefixes.num_tokens == 40
    slots.is_full = True
    with caplog.at_level(logging.WARNING, logger="server.engine.memory.prefix_cache"):
        _complete(cache, *random_prompts(41, seed=41))
    assert prefixes.num_tokens == 0
    assert [r.getMessage() for r in caplog.records] == [
        "the GPU has no room for a prompt of 41 tokens: the prefix cache is emptied"
    ]
    assert cache.num_held_tokens == 0


def test_a_shared_beginning_counts_once():
    kv_cache = _kv_cache()  # of blocks of 32 tokens
    cache = CacheManager(
        num_slots=3, max_tokens=142, kv_cache=kv_cache, prefixes=PrefixCache(kv_cache.slots, max_tokens=150)
    )
    [shared, *tails] = random_prompts(70, 10, 20, 30)
    first, second, third = as_sequences([shared + tail for tail in tails])
    cache.admit(first)
    first.num_computed_tokens = 80
    assert cache.can_admit(second), "90 tokens, of which 64 are shared, into 61"
    cache.admit(second)
    assert second.num_computed_tokens == 64
    assert cache.num_held_tokens == 80 + 90 - 64
    assert not cache.can_admit(third), "37 further tokens into 34"
    cache.release(first)
    assert cache.num_held_tokens == 90
    assert cache.can_admit(third)


def test_prefixes_that_running_sequences_hold_are_evicted_last():
    kv_cache = _kv_cache()
    prefixes = PrefixCache(kv_cache.slots, max_tokens=120)
    cache = CacheManager(num_slots=3, max_tokens=300, kv_cache=kv_cache, prefixes=prefixes)
    used, idle = random_prompts(65, 40)
    for tokens in (used, idle):
        _complete(cache, tokens)
    [running] = as_sequences([[*used[:64], 5, 6]])
    cache.admit(running)
    assert prefixes.num_tokens == 1 + 40, "the running sequence holds 64 of 65"
    assert _count_found(prefixes, idle) == 32, "now the other one is the least recently used"
    prefixes.shrink_to(20)
    assert [_count_found(prefixes, tokens) for tokens in (used, idle)] == [64, 0]
    prefixes.shrink_to(0)
    assert [_count_found(prefixes, tokens) for tokens in (used, idle)] == [0, 0]


def _count_found(prefixes: PrefixCache, tokens: list[int]) -> int:
    [sequence] = as_sequences([[*tokens, 5]])
    found = prefixes.match(sequence, [])
    return found.length if found is not None else 0


def _complete(cache: CacheManager, tokens: list[int]) -> None:
    """Admits a sequence, counts all its tokens as computed and releases it."""
    [sequence] = as_sequences([tokens])
    cache.admit(sequence)
    sequence.num_computed_tokens = len(tokens)
    cache.release(sequence)


def _kv_cache() -> KVCache:
    return KVCache(
        {0: LayerShape(1, 32, 32)}, num_slots=3, slot_len=100, dtype=torch.float32, device=torch.device("cpu")
    )
