"""The engine core with a tiny model: order, budget, preemption, aborts, finish reasons, log-probabilities."""

import itertools
import os
import random
from functools import partial

import pytest
import torch
from transformers import PreTrainedModel

from server.engine.compute import batch
from server.terms.types import EnginePrompt, EngineStats, SamplingParams
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


def test_waiting_choices_share_the_prompts_tokens(llama):
    engine = SmallEngine(llama)
    prompt = EnginePrompt([5] * 30, SamplingParams(max_tokens=3, seed=7))
    assert not engine.core.add((f"a-{index}" for index in range(40)), prompt)
    sequences = list(engine.scheduler._by_id.values())
    assert all(each.token_ids is prompt.token_ids for each in sequences)
    assert [each.params.seed for each in sequences] == [7 + position for position in range(40)]
    while engine.core.has_work:
        engine.core.step()
    assert prompt.token_ids == [5] * 30
    assert {len(each.token_ids) for each in sequences} == {33}
    engine.assert_nothing_leaked()


def test_the_models_context_limits_the_output(llama):
    engine = SmallEngine(llama, max_model_len=40)
    [completion] = engine.complete(random_prompts(33), max_tokens=100)
    assert (len(completion.token_ids), completion.finish_reason) == (7, "length")
    engine.assert_nothing_leaked()


@pytest.mark.parametrize("length", [0, 40, 41, 1000])
def test_a_prompt_without_room_for_a_token_is_rejected(llama, length):
    engine = SmallEngine(llama, max_model_len=40)
    completion = engine.add("a", random_prompts(length)[0] if length else [])
    assert completion.finish_reason == "error"
    assert completion.error == f"a prompt of {length} tokens does not fit 40 tokens"
    engine.assert_nothing_leaked()


def test_an_end_of_sequence_token_ends_the_request_and_is_reported(plain_llama, llama):
    [expected] = greedy_outputs(plain_llama, random_prompts(9), 20)
    eos = next(t for t in expected[3:] if expected.count(t) == 1)
    num_tokens = expected.index(eos) + 1  # a stop on the last token counts as a stop
    other = next(t for t in range(llama.config.vocab_size) if t not in expected)
    [completion] = SmallEngine(llama, eos_token_ids=(other, eos)).complete(random_prompts(9), max_tokens=num_tokens)
    assert completion.token_ids == expected[:num_tokens]
    assert (completion.finish_reason, completion.stop_token_id) == ("stop", eos)


def test_ignore_eos_ignores_the_end_token_but_not_stop_tokens(plain_llama, llama):
    [expected] = greedy_outputs(plain_llama, random_prompts(9), 20)
    eos, stop = [t for t in expected[3:] if expected.count(t) == 1][:2]
    engine = SmallEngine(llama, eos_token_ids=(eos,))
    ignoring = engine.add("ignoring", random_prompts(9)[0], max_tokens=20, ignore_eos=True)
    stopping = engine.add("stopping", random_prompts(9)[0], max_tokens=20, ignore_eos=True, stop_token_ids=(stop,))
    engine.run()
    assert (ignoring.token_ids, ignoring.finish_reason) == (expected, "length")
    assert stopping.token_ids == expected[: expected.index(stop) + 1]
    assert (stopping.finish_reason, stopping.stop_token_id) == ("stop", stop)


@pytest.mark.parametrize("budget", [512, 16])
def test_logprobs_of_prompt_and_output_equal_the_models(plain_llama, llama, budget):
    [prompt] = random_prompts(70)
    engine = SmallEngine(llama, max_num_batched_tokens=budget)
    [completion] = engine.complete([prompt], prompt_logprobs=2, logprobs=1, max_tokens=10)
    raw = _logprobs(plain_llama, prompt + completion.token_ids)
    assert len(completion.prompt_logprobs) == 70
    assert completion.prompt_logprobs[0] is None
    for position, found in enumerate(completion.prompt_logprobs[1:]):
        assert found.token_id == prompt[position + 1]
        assert found.logprob == pytest.approx(float(raw[position, found.token_id]), abs=1e-4)
        assert [t for t, _ in found.top] == raw[position].topk(2).indices.tolist()
    assert len(completion.logprobs) == 10
    for i, found in enumerate(completion.logprobs):
        assert (found.token_id, found.rank) == (completion.token_ids[i], 1)
        assert found.logprob == pytest.approx(float(raw[69 + i, found.token_id]), abs=1e-4)
        assert found.top == [(found.token_id, found.logprob)]


def test_stats_count_requests_tokens_and_the_cache_exactly(llama):
    engine = SmallEngine(llama, num_slots=2, max_model_len=50, max_num_batched_tokens=12)
    assert engine.stats == EngineStats(num_threads=1)
    for i, prompt in enumerate(random_prompts(10, 4, 3)):
        engine.add(str(i), prompt, max_tokens=2)
    found = []
    while engine.core.has_work:
        engine.step()
        s = engine.stats
        found.append((s.num_running, s.num_waiting, s.kv_cache_usage, s.num_iteration_tokens))
    assert found == [
        (2, 1, 15 / 100, 10),  # the second prompt does not fit into the step and waits in its slot
        (1, 1, 5 / 100, 1 + 4),  # the first ends
        (1, 0, 4 / 100, 1 + 3),  # the second ends
        (0, 0, 0.0, 1),
    ]


@torch.inference_mode()
def _logprobs(model: PreTrainedModel, token_ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([token_ids])).logits[0].log_softmax(-1)


def test_the_first_output_reports_queue_and_prefill_times(llama, monkeypatch):
    """Each reading of the clock is a second later: two arrivals, then admission and end of each prompt."""
    clock = map(float, itertools.count())
    for module in ("core", "scheduler", "sequence"):
        monkeypatch.setattr(f"server.engine.{module}.monotonic", clock.__next__)
    engine = SmallEngine(llama, num_slots=1)
    engine.add("first", [1, 2, 3], max_tokens=5)
    engine.add("second", [1, 2, 3], max_tokens=2)
    reported = []
    while engine.core.has_work:
        reported += [(output.request_id, output.queue_s, output.prefill_s) for output in engine.core.step()]
    assert reported == [("first", 2, 1), *[("first", 0, 0)] * 4, ("second", 3, 1), ("second", 0, 0)]


def test_a_token_beyond_the_vocabulary_fails_only_its_request(llama):
    bad, good = SmallEngine(llama).complete([[5, llama.config.vocab_size], [5, 6]], max_tokens=2)
    assert bad.finish_reason == "error"
    assert str(llama.config.vocab_size) in (bad.error or "")
    assert len(good.token_ids) == 2
