"""The prefix cache saves computation and does not change outputs."""

from typing import Any

import numpy as np
import pytest
import torch

from server.engine.compute import attention
from server.engine.compute.attention_kernels import AttentionPart, attend_to_part
from server.engine.memory.kv_cache import CopiedSlots
from server.engine.memory.prefix_cache import PrefixCache, PrefixMatch
from server.engine.sequence import Sequence
from server.terms.types import SamplingParams
from tests.server.engine.small_engine import SmallEngine
from tests.server.engine.tiny_models import greedy_outputs, random_prompts

pytestmark = pytest.mark.thorough


def test_hits_and_queries_are_counted_in_tokens(llama):
    [first, other] = random_prompts(40, 35)
    engine = SmallEngine(llama, prefix_tokens=500)
    found = []
    for prompt in (first, first, first[:36] + other, other, first[:20] + other):
        [completion] = engine.complete([prompt], max_tokens=2)
        stats = engine.stats
        found.append((stats.prefix_cache_queries, stats.prefix_cache_hits, completion.num_cached_tokens))
    assert found == [
        (40, 0, 0),
        (80, 32, 32),
        (151, 64, 32),
        (186, 64, 0),
        (241, 64, 0),  # 20 tokens in common are too few to be cached
    ]


@pytest.mark.parametrize("interrupts", [True, False])
def test_resetting_the_prefix_cache_forgets_prompts(llama, interrupts):
    engine = SmallEngine(llama, prefix_tokens=512)
    prompts = random_prompts(60, 12)
    engine.generate(prompts[:1])
    running = engine.add("running", prompts[1])
    engine.step()
    assert engine.core.reset_prefix_cache(interrupts=interrupts) is interrupts
    engine.run()
    assert running.finish_reason == "length"
    assert engine.complete(prompts[:1])[0].num_cached_tokens == (0 if interrupts else 48)


def test_a_conversations_next_turn_reuses_the_last(plain_llama, llama):
    engine = SmallEngine(llama, prefix_tokens=500)
    [history, question, last_question] = random_prompts(40, 6, 7)
    for tail, num_cached in ((question, 0), (last_question, 48), ([5], 64)):
        history = history + tail
        [completion] = engine.complete([history], max_tokens=10)
        assert completion.token_ids == greedy_outputs(plain_llama, [history], 10)[0]
        assert completion.num_cached_tokens == num_cached
        history += completion.token_ids


def test_several_choices_compute_their_prompt_once(plain_llama, llama):
    [prompt] = random_prompts(90)
    engine = SmallEngine(llama, prefix_tokens=500, max_num_batched_tokens=32)
    choices = [engine.add(f"choice {i}", prompt, max_tokens=5) for i in range(4)]
    engine.run()
    [expected] = greedy_outputs(plain_llama, [prompt], 5)
    assert [c.token_ids for c in choices] == [expected] * 4
    assert [c.num_cached_tokens for c in choices] == [0, 80, 80, 80]
    assert engine.steps[:3] == [{"choice 0": 32}, {"choice 0": 32}, {"choice 0": 26}]
    assert engine.steps[3] == {"choice 0": 1, "choice 1": 10, "choice 2": 10, "choice 3": 10}


@pytest.mark.parametrize(("length", "prefix_tokens"), [(32, 500), (90, 0)], ids=["short prompt", "no cache"])
def test_choices_that_cannot_share_start_together(llama, length, prefix_tokens):
    engine = SmallEngine(llama, prefix_tokens=prefix_tokens)
    [prompt] = random_prompts(length)
    for i in range(3):
        engine.add(str(i), prompt, max_tokens=2)
    engine.step()
    assert engine.steps == [{"0": length, "1": length, "2": length}]


def test_sequences_that_share_a_long_prefix_hold_and_read_it_once(plain_llama, llama, monkeypatch):
    engine = SmallEngine(llama, prefix_tokens=2000, max_model_len=800)
    shared_parts = []

    def record(query: torch.Tensor, keys: torch.Tensor, *args: Any, **kwargs: Any) -> AttentionPart:
        shared_parts.append((query.shape[2], keys.shape[2]))
        return attend_to_part(query, keys, *args, **kwargs)

    monkeypatch.setattr(attention, "attend_to_part", record)
    [shared, *tails] = random_prompts(600, 3, 4, 5, 40, 6)
    prompts = [shared + tail for tail in tails]
    engine.complete([shared], max_tokens=1)
    held = []
    choices = [engine.add(str(i), prompt, max_tokens=8) for i, prompt in enumerate(prompts)]
    engine.step()
    held.append(engine.cache.num_held_tokens)
    engine.run()
    assert [c.token_ids for c in choices] == greedy_outputs(plain_llama, prompts, 8)
    assert held == [576 + sum(len(p) + 1 - 576 for p in prompts)]
    assert (5 * 2, 576) in shared_parts


def test_prompt_logprobs_compute_every_prompt_token(llama):
    engine = SmallEngine(llama, prefix_tokens=500)
    [prompt] = random_prompts(50)
    engine.complete([prompt])
    [completion] = engine.complete([prompt], prompt_logprobs=0)
    assert completion.num_cached_tokens == 0
    assert completion.prompt_logprobs is not None
    assert len(completion.prompt_logprobs) == 50
    assert engine.stats.prefix_cache_queries == 50


def test_a_preempted_request_reuses_its_prefix_without_counting_a_hit(llama):
    engine = SmallEngine(
        llama, num_slots=2, max_model_len=260, kv_cache_tokens=300, max_num_batched_tokens=40, prefix_tokens=100
    )
    [old, young] = random_prompts(196, 100)
    first = engine.add("old", old, max_tokens=10)
    while not first.token_ids:
        engine.step()
    preempted = engine.add("young", young, max_tokens=3)
    sequence = engine.scheduler._by_id["young"]
    engine.run()
    assert sequence.num_preemptions == 1
    assert [step["young"] for step in engine.steps if "young" in step] == [39, 39, 36, 1, 1]
    assert (engine.stats.prefix_cache_queries, engine.stats.prefix_cache_hits) == (296, 0)
    assert preempted.num_cached_tokens == 0


def test_an_aborted_prompts_computed_part_is_cached(llama):
    engine = SmallEngine(llama, prefix_tokens=500, max_num_batched_tokens=40)
    [prompt] = random_prompts(100)
    engine.add("aborted", prompt)
    engine.step()
    engine.core.abort(["aborted"])
    [completion] = engine.complete([prompt])
    assert completion.num_cached_tokens == 32


def test_the_least_recently_used_entry_is_evicted_first():
    cache = _cache(max_tokens=120)
    a, b, c, d = random_prompts(40, 40, 40, 40)
    for tokens in (a, b, c):
        _put(cache, tokens)
    assert cache.match(_sequence(a), []) is not None
    _put(cache, d)
    assert [cache.match(_sequence(tokens), []) is not None for tokens in (a, b, c, d)] == [True, False, True, True]
    assert cache.num_tokens == 120


def test_a_longer_entry_replaces_the_entries_it_continues():
    cache = _cache()
    [tokens] = random_prompts(100)
    _put(cache, tokens[:40])
    _put(cache, tokens[:70])
    assert cache.num_tokens == 70
    assert not cache.wants(np.array(tokens[:60]))
    assert cache.wants(np.array(tokens))


def test_the_longest_beginning_is_matched_in_ended_and_running_sequences():
    cache = _cache()
    [tokens] = random_prompts(90)
    cached = _put(cache, tokens[:50] + [7])
    running = _sequence(tokens[:70], num_computed=66)
    running.slot = 3
    assert cache.match(_sequence(tokens), []) == PrefixMatch(48, cached)
    assert cache.match(_sequence(tokens), [running]) == PrefixMatch(64, 3)
    running.num_computed_tokens = 45
    assert cache.match(_sequence(tokens), [running]) == PrefixMatch(48, cached)


def _cache(max_tokens: int = 500) -> PrefixCache:
    slots = CopiedSlots(num_slots=1, slot_len=500, part_sizes=[1], dtype=torch.float32, device=torch.device("cpu"))
    return PrefixCache(slots, max_tokens=max_tokens)


def _put(cache: PrefixCache, token_ids: list[int]) -> list[torch.Tensor]:
    assert cache.wants(np.array(token_ids))
    cached = cache._slots.keep(0, len(token_ids))
    cache.put(np.array(token_ids), cached)
    cache.shrink_to(500)
    assert isinstance(cached[0], torch.Tensor)
    return cached


def _sequence(token_ids: list[int], num_computed: int = 0) -> Sequence:
    sequence = Sequence("a", token_ids, SamplingParams(max_tokens=1))
    sequence.num_computed_tokens = num_computed
    return sequence


@pytest.mark.parametrize("is_running", [False, True], ids=["ended", "running"])
def test_a_longer_common_beginning_shows_only_with_a_whole_block(llama, is_running):
    """If single tokens were shared, a client could guess prompts of others token by token."""
    engine = SmallEngine(llama, prefix_tokens=500)
    [secret, other] = random_prompts(64, 30)
    engine.add("secret", secret, max_tokens=20)
    if is_running:
        engine.step()
    else:
        engine.run()
    guesses = [engine.add(str(n), secret[:n] + other, max_tokens=1) for n in (40, 41, 47, 48, 63)]
    engine.run()
    assert [guess.num_cached_tokens for guess in guesses] == [32, 32, 32, 48, 48]
    assert engine.stats.prefix_cache_hits == 3 * 32 + 2 * 48


def test_prompts_share_only_with_prompts_of_the_same_salt(plain_llama, llama):
    engine = SmallEngine(llama, num_slots=2, prefix_tokens=400)
    prompt = list(range(3, 60))
    expected = greedy_outputs(plain_llama, [prompt], 4)[0]
    salts = (None, "mine", "yours", "mine", None, "yours")
    completions = [engine.complete([prompt], max_tokens=4, cache_salt=salt)[0] for salt in salts]
    assert [completion.num_cached_tokens for completion in completions] == [0, 0, 0, 48, 48, 48]
    assert [completion.token_ids for completion in completions] == [expected] * 6


def test_running_prompts_share_and_wait_only_for_prompts_of_the_same_salt(llama):
    engine = SmallEngine(llama, num_slots=4, prefix_tokens=400)
    prompt = list(range(3, 60))
    salts = {"salted": "mine", "plain": None, "other": "yours", "waits": "mine"}
    completions = [engine.add(name, prompt, max_tokens=2, cache_salt=salt) for name, salt in salts.items()]
    engine.step()
    assert engine.steps == [{"salted": 57, "plain": 57, "other": 57}]
    engine.run()
    assert [completion.num_cached_tokens for completion in completions] == [0, 0, 0, 48]
