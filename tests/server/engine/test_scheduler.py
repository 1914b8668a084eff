"""The scheduler: order of arrival, the budget of a step, preemption, aborted and random requests."""

import os
import random
from functools import partial

import pytest

from server.engine.compute import batch
from server.terms.types import EnginePrompt, SamplingParams
from tests.server.engine.small_engine import Completion, SmallEngine
from tests.server.engine.tiny_models import greedy_outputs, random_prompts
from tests.support.growth import count_calls


def test_a_step_computes_no_more_than_its_budget(llama):
    engine = SmallEngine(llama, max_num_batched_tokens=10)
    engine.generate(random_prompts(35, 4, 18, 10, 11, 1), max_tokens=20)
    assert max(sum(step.values()) for step in engine.steps) == 10
    assert [step["0"] for step in engine.steps if "0" in step][:4] == [10, 10, 10, 5]


def test_a_budget_below_the_number_of_requests_completes_all(plain_llama, llama):
    prompts = random_prompts(9, 4, 18, 2)
    engine = SmallEngine(llama, max_num_batched_tokens=2)
    assert engine.generate(prompts, max_tokens=5) == greedy_outputs(plain_llama, prompts, 5)


def test_a_prompt_is_not_split_beside_another_prompt(llama):
    engine = SmallEngine(llama, max_num_batched_tokens=20)
    for name, prompt in zip("abc", random_prompts(12, 10, 8), strict=True):
        engine.add(name, prompt, max_tokens=3)
    engine.run()
    assert engine.steps[:2] == [{"a": 12}, {"a": 1, "b": 10, "c": 8}]


def test_lack_of_memory_preempts_the_youngest_and_changes_no_output(plain_llama, llama):
    prompts = random_prompts(20, 21, 22, 23)
    expected = greedy_outputs(plain_llama, prompts, 24)
    engine = SmallEngine(llama, num_slots=4, max_model_len=100, kv_cache_tokens=150)
    completions = [engine.add(str(i), p, max_tokens=24) for i, p in enumerate(prompts)]
    sequences = [engine.scheduler._by_id[str(i)] for i in range(4)]
    while engine.core.has_work:
        engine.step()
        assert engine.cache.num_held_tokens <= 150
        assert engine.stats.kv_cache_usage <= 1
    assert [c.token_ids for c in completions] == expected
    assert sequences[0].num_preemptions == 0
    assert sequences[3].num_preemptions > 0
    assert engine.stats.num_preemptions == sum(s.num_preemptions for s in sequences)
    engine.assert_nothing_leaked()


def test_a_preempted_request_resumes_before_later_arrivals(llama):
    engine = SmallEngine(llama, num_slots=2, max_model_len=100, kv_cache_tokens=100)
    for name, prompt in zip(("old", "young", "late"), random_prompts(40, 41, 5), strict=True):
        engine.add(name, prompt, max_tokens=50)
    young = engine.scheduler._by_id["young"]
    while young.num_preemptions == 0:
        engine.step()
    num_before = len(engine.steps)
    engine.run()
    resumed = list(dict.fromkeys(request_id for step in engine.steps[num_before:] for request_id in step))
    assert resumed == ["old", "young", "late"]


def test_prompt_logprobs_are_complete_after_a_preemption_within_the_prompt(llama):
    engine = SmallEngine(llama, num_slots=2, max_model_len=120, kv_cache_tokens=120, max_num_batched_tokens=8)
    engine.add("old", random_prompts(10)[0], max_tokens=60)
    engine.step()
    young = engine.add("young", random_prompts(105)[0], max_tokens=3, prompt_logprobs=1)
    sequence = engine.scheduler._by_id["young"]
    engine.run()
    assert sequence.num_preemptions == 1
    assert young.prompt_logprobs is not None
    assert [p and p.token_id for p in young.prompt_logprobs] == [None, *random_prompts(105)[0][1:]]
    engine.assert_nothing_leaked()


@pytest.mark.parametrize("phase", ["waiting", "prefilling", "decoding", "preempted"])
def test_an_aborted_request_releases_its_slot_and_memory_at_once(llama, phase):
    engine = SmallEngine(llama, num_slots=2, max_model_len=100, kv_cache_tokens=120, max_num_batched_tokens=16)
    [old] = random_prompts(10)
    engine.add("old", old, max_tokens=80)
    if phase == "waiting":
        engine.add("older", random_prompts(5)[0], max_tokens=80)
    engine.step()
    request = engine.add("aborted", random_prompts(40)[0], max_tokens=50)
    _step_until(engine, "aborted", phase)
    held, tokens = engine.cache.num_held_tokens, list(request.token_ids)
    sequence = engine.scheduler._by_id["aborted"]
    engine.core.abort(["aborted", "unknown"])
    assert sequence not in (*engine.scheduler._waiting, *engine.scheduler._running)
    assert len(engine.cache._free_slots) == (0 if phase == "waiting" else 1)
    assert held - engine.cache.num_held_tokens == (sequence.num_tokens if phase in ("prefilling", "decoding") else 0)
    engine.run()
    assert request.token_ids == tokens
    assert request.finish_reason is None
    assert engine.completions["old"].finish_reason == "length"
    engine.assert_nothing_leaked()


class _Name(str):
    """A request id whose comparisons are calls of Python, so that a search among ids is counted."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other)


def test_aborting_a_request_costs_as_much_as_it_has_sequences(llama):
    engine = SmallEngine(llama)
    prompt = EnginePrompt([1], SamplingParams(max_tokens=1))

    def add_and_abort(size: int) -> None:
        engine.core.add(map(_Name, range(size)), prompt)
        engine.core.abort([*map(_Name, reversed(range(size)))])

    few, many = (count_calls(partial(add_and_abort, size)) for size in (300, 600))
    assert many < 2.2 * few
    engine.assert_nothing_leaked()


def test_a_freed_slot_is_reused_in_the_same_step(llama):
    engine = SmallEngine(llama, num_slots=1)
    engine.add("running", random_prompts(5)[0])
    engine.add("next", random_prompts(6)[0])
    engine.step()
    engine.core.abort(["running"])
    engine.step()
    assert engine.steps[-1] == {"next": 6}


def _run_random_load(
    engine: SmallEngine, known: list[tuple[list[int], list[int]]], rng: random.Random, num_requests: int
) -> int:
    """Runs random requests with known answers, some of them aborted. Returns how many have finished."""
    wanted: dict[str, tuple[Completion, list[int]]] = {}
    aborted: set[str] = set()
    for i in range(num_requests):
        prompt, output = rng.choice(known)
        turn = rng.choice([0, 0, rng.randint(1, len(output) - 1)])  # sometimes the prompt has a part of the output
        rest = output[turn:]
        rest = rest[: rng.randint(1, len(rest))]
        wanted[str(i)] = (engine.add(str(i), prompt + output[:turn], max_tokens=len(rest)), rest)
        while engine.core.has_work and rng.random() < 0.7:
            engine.step()
        if rng.random() < 0.25:
            aborted_id = str(rng.randint(max(0, i - 20), i))
            engine.core.abort([aborted_id])
            aborted.add(aborted_id)
    engine.run()
    for request_id, (completion, output) in wanted.items():
        if completion.finish_reason is None:
            assert request_id in aborted
            assert completion.token_ids == output[: len(completion.token_ids)]
        else:
            assert completion.token_ids == output
    return sum(completion.finish_reason is not None for completion, _ in wanted.values())


@pytest.mark.thorough
@pytest.mark.parametrize("prefix_tokens", [0, 120], ids=["no prefix cache", "prefix cache"])
def test_random_requests_and_aborts_on_little_memory(plain_llama, llama, prefix_tokens, monkeypatch):
    for name in ("_MIN_SHARED_TOKENS", "_MIN_SAVED_TOKENS"):
        monkeypatch.setattr(batch, name, 32)  # so that short prefixes are attended to once, too
    rng = random.Random(prefix_tokens)
    prompts = random_prompts(*(rng.randint(1, 90) for _ in range(12)))
    prompts += [p[:40] + q[:20] for p, q in zip(prompts[:4], prompts[4:8], strict=True)]
    known = list(zip(prompts, greedy_outputs(plain_llama, prompts, 36), strict=True))
    engine = SmallEngine(
        llama,
        num_slots=8,
        max_model_len=160,
        kv_cache_tokens=400,
        max_num_batched_tokens=48,
        prefix_tokens=prefix_tokens,
    )
    assert _run_random_load(engine, known, rng, 60) > 30
    assert engine.stats.num_preemptions > 2
    engine.assert_nothing_leaked()
    if engine.prefixes is not None:
        assert engine.cache.num_hit_tokens > 100
        assert engine.prefixes.num_tokens <= prefix_tokens
    engine.cache.forget_prefixes()
    kv_cache = engine.cache._kv_cache
    assert os.fstat(kv_cache.slots.memory._file).st_blocks == 0


def _step_until(engine: SmallEngine, request_id: str, phase: str) -> None:
    for _ in range(200):
        sequence = engine.scheduler._by_id[request_id]
        is_waiting = sequence.slot < 0
        found = {
            "waiting": is_waiting,
            "prefilling": not is_waiting and 0 < sequence.num_computed_tokens < sequence.num_prompt_tokens,
            "decoding": not is_waiting and sequence.num_output_tokens > 2,
            "preempted": is_waiting and sequence.num_preemptions > 0,
        }[phase]
        if found:
            return
        engine.step()
    raise AssertionError(f"the request was never {phase}")
