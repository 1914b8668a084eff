"""The KV cache fits into memory, or the start fails with the sizes. Sequences and prefix cache share it."""

import logging

import pytest
import torch
from transformers import LlamaConfig

from base.errors import EngineMemoryError, EngineStartError
from server.engine.memory import sizing
from server.engine.memory.cache_manager import CacheManager
from server.engine.memory.kv_cache import CopiedSlots, KVCache, LayerShape
from server.engine.memory.prefix_cache import PrefixCache
from server.engine.memory.sizing import NO_WORKING_MEMORY, CacheSize, WorkingMemory, estimate_working_memory, size_cache
from server.terms.config import EngineConfig
from tests.server.engine.teacher_forcing import as_sequences
from tests.server.engine.tiny_models import random_prompts

SHAPES = {layer: LayerShape(3, 64, 64) for layer in range(30)}
BYTES_PER_TOKEN = 30 * 3 * 128 * 2
"""The size of a token in the KV cache of SmolLM2-135M in bfloat16."""
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("num_bytes", "options", "own_len", "expected"),
    [
        (10_000 * BYTES_PER_TOKEN + 17, {"max_num_seqs": 4}, 8192, (4, 8192, 10_000)),
        (1 << 40, {"max_num_seqs": 2}, 100, (2, 100, 200)),
        (8192 * BYTES_PER_TOKEN, {"max_model_len": 8192, "max_num_seqs": 128}, 8192, (128, 8192, 8192)),
    ],
    ids=["whole tokens", "no more than the slots hold", "exactly one sequence"],
)
def test_kv_cache_memory_bytes_sets_the_number_of_tokens(num_bytes, options, own_len, expected):
    size = _size(EngineConfig(kv_cache_memory_bytes=num_bytes, **options), max_model_len=own_len)
    assert size == CacheSize(*expected, num_bytes=expected[2] * BYTES_PER_TOKEN)


def test_a_share_of_the_free_memory_is_used_by_default(monkeypatch):
    monkeypatch.setattr(sizing, "available_bytes", lambda: 50_000 * BYTES_PER_TOKEN)
    assert _size(EngineConfig()).num_tokens == 20_000


def test_a_fixed_length_that_does_not_fit_is_rejected_with_the_sizes():
    config = EngineConfig(kv_cache_memory_bytes=5000 * BYTES_PER_TOKEN, max_model_len=8192)
    with pytest.raises(EngineStartError) as caught:
        _size(config)
    assert str(caught.value) == (
        "a sequence of 8192 tokens needs 0.176 GiB of KV cache and 0.107 GiB are free: "
        "lower --max-model-len to 5000 or raise --kv-cache-memory-bytes"
    )
    with pytest.raises(EngineStartError, match="0 GiB are free: raise --kv-cache-memory-bytes"):
        _size(EngineConfig(kv_cache_memory_bytes=1))


def test_the_models_own_length_is_lowered_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="server.engine.memory.sizing"):
        size = _size(EngineConfig(kv_cache_memory_bytes=5000 * BYTES_PER_TOKEN))
    assert (size.slot_len, size.num_tokens) == (5000, 5000)
    assert [r.getMessage() for r in caplog.records] == [
        "max_model_len lowered from 8192 to 5000: no more fits into memory"
    ]


@pytest.mark.parametrize(("has_prefix_cache", "num_slots"), [(False, 2), (True, 1)])
def test_on_a_gpu_every_slot_has_its_memory_and_fewer_slots_are_logged(has_prefix_cache, num_slots, caplog):
    config = EngineConfig(
        kv_cache_memory_bytes=20_000 * BYTES_PER_TOKEN, max_num_seqs=128, enable_prefix_caching=has_prefix_cache
    )
    num_tokens = num_slots * 8192
    with caplog.at_level(logging.WARNING, logger="server.engine.memory.sizing"):
        assert _size_on_gpu(config) == CacheSize(num_slots, 8192, num_tokens, num_tokens * BYTES_PER_TOKEN)
    assert [r.getMessage() for r in caplog.records] == [
        f"the GPU's memory holds {num_slots} sequences of 8192 tokens at once instead of 128, and further ones wait: "
        "a lower --max-model-len makes room for more"
    ]


def test_a_gpu_keeps_room_for_the_largest_step_and_a_lack_names_gpu_memory_utilization(monkeypatch):
    monkeypatch.setattr(sizing, "_free_bytes", lambda config, device: 20_000 * BYTES_PER_TOKEN)
    config = EngineConfig(enable_prefix_caching=False, max_num_seqs=1)
    working = WorkingMemory(10_000 * BYTES_PER_TOKEN, BYTES_PER_TOKEN)
    assert _size_on_gpu(config, working).slot_len == 5_000
    monkeypatch.setattr(sizing, "_free_bytes", lambda config, device: 5_000 * BYTES_PER_TOKEN)
    with pytest.raises(EngineMemoryError, match=r"lower --max-model-len to 4000 or raise --gpu-memory-utilization"):
        _size_on_gpu(EngineConfig(max_model_len=8192))


def test_working_memory_grows_with_the_step_and_the_vocabulary():
    llama = LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_attention_heads=32, num_key_value_heads=8, vocab_size=32_000
    )
    large_vocabulary = LlamaConfig(**{**llama.to_dict(), "vocab_size": 64_000})
    few, more, wider = (
        estimate_working_memory(config, num_tokens=tokens, num_sequences=128, dtype=torch.bfloat16)
        for config, tokens in ((llama, 512), (llama, 2048), (large_vocabulary, 512))
    )
    assert more.num_bytes - few.num_bytes == 1536 * (12 * 2048 + 4 * 8192) * 2
    assert more.bytes_per_position > few.bytes_per_position
    assert wider.num_bytes - few.num_bytes == 128 * 32_000 * 32


def test_too_little_address_space_is_reported_in_one_line():
    with pytest.raises(EngineStartError, match=r"cannot reserve .* GiB of address space .*lower --max-num-seqs"):
        KVCache(SHAPES, num_slots=1 << 20, slot_len=1 << 20, dtype=torch.bfloat16, device=CPU)


def _size_on_gpu(config: EngineConfig, working: WorkingMemory = NO_WORKING_MEMORY) -> CacheSize:
    """Computes sizes for a GPU that need not exist, given free memory or the cache's bytes."""
    return size_cache(
        SHAPES, config, max_model_len=8192, dtype=torch.bfloat16, device=torch.device("cuda"), working=working
    )


def _size(config: EngineConfig, max_model_len: int = 8192) -> CacheSize:
    return size_cache(SHAPES, config, max_model_len=max_model_len, dtype=torch.bfloat16, device=CPU)


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
