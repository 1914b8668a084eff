"""The engine core with a tiny model: finish reasons, log-probabilities, stats, and outputs in any batch."""

import itertools

import pytest
import torch
from transformers import PreTrainedModel

from server.terms.types import EnginePrompt, EngineStats, SamplingParams
from tests.server.engine.small_engine import SmallEngine
from tests.server.engine.tiny_models import greedy_outputs, random_prompts


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
