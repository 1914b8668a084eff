"""Sampling parameters work as in vLLM and OpenAI, in vLLM's order, each for its own sequence only."""

import pytest
import torch
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from server.engine.sampling.sampler import Sampler
from server.engine.sequence import Sequence
from tests.server.engine.sampling.small_sampler import (
    EOS,
    create_sampler,
    create_sequence,
    processed_logits,
    random_logits,
)

VOCAB = 60
CHI_SQUARE_1_IN_10000 = 25.0
"""The exact value for 5 degrees of freedom is 25.7; a correct sampler exceeds it for 1 of 10000 seeds."""


@pytest.mark.parametrize("temperature", [0.0, 1e-6])
def test_temperature_zero_takes_the_most_likely_token_with_any_other_parameter(temperature):
    logits = random_logits(6, VOCAB)
    sequences = [create_sequence([1], temperature=temperature, top_k=5, seed=i) for i in range(6)]
    assert _sample(create_sampler(vocab_size=VOCAB), sequences, logits) == logits.argmax(-1).tolist()


def test_greedy_choice_among_equals_is_the_first():
    logits = torch.zeros(3, 50_000)
    logits[:, 30_000:] = 1.0
    sequences = [create_sequence([1], temperature=0.0) for _ in range(3)]
    assert _sample(create_sampler(vocab_size=50_000), sequences, logits) == [30_000] * 3


def test_draws_follow_the_distribution():
    probabilities = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.07, 0.03])
    num_draws = 20_000
    sampler = create_sampler(vocab_size=6, seed=11)
    drawn: list[int] = []
    for _ in range(num_draws // 200):
        drawn += _sample(sampler, [create_sequence([1])] * 200, probabilities.log().repeat(200, 1))
    expected = probabilities * num_draws
    statistic = ((torch.bincount(torch.tensor(drawn), minlength=6) - expected) ** 2 / expected).sum()
    assert 0 < float(statistic) < CHI_SQUARE_1_IN_10000


def test_draws_with_a_seed_follow_the_distribution():
    probabilities = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.07, 0.03])
    sampler = create_sampler(vocab_size=6)
    sequence = create_sequence([1], seed=3)
    drawn = [_sample(sampler, [sequence], probabilities.log()[None])[0] for _ in range(5000)]
    expected = probabilities * len(drawn)
    statistic = ((torch.bincount(torch.tensor(drawn), minlength=6) - expected) ** 2 / expected).sum()
    assert 0 < float(statistic) < CHI_SQUARE_1_IN_10000


def test_a_seed_gives_the_same_tokens_in_any_batch():
    steps = random_logits(30, 1, 4000)
    alone = _run(create_sampler(vocab_size=4000, seed=1), [create_sequence([1], seed=42)], steps)
    crowd = [create_sequence([1], seed=42), create_sequence([1], top_p=0.5), create_sequence([1], seed=7, top_k=3)]
    noise = random_logits(30, 2, 4000, seed=9)
    crowded = _run(create_sampler(vocab_size=4000, seed=2), crowd, torch.cat([steps, noise], dim=1))
    assert [row[0] for row in crowded] == [row[0] for row in alone]


@pytest.mark.parametrize("limits", [{}, {"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.01}], ids=str)
def test_seeds_decide_the_tokens(limits):
    steps = random_logits(20, 4, 1000)[:, :1].expand(-1, 4, -1)
    seeds = [5, 5, 6, -5]
    tokens = _run(create_sampler(vocab_size=1000), [create_sequence([1], seed=s, **limits) for s in seeds], steps)
    first, same, other, negative = zip(*tokens, strict=True)
    assert first == same
    assert len({first, other, negative}) == 3


def test_the_engines_seed_decides_unseeded_draws():
    steps = random_logits(20, 1, 1000)
    runs = [
        tuple(row[0] for row in _run(create_sampler(vocab_size=1000, seed=seed), [create_sequence([1])], steps))
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_logit_bias_equals_that_of_transformers():
    logits = random_logits(VOCAB)
    bias = {3: 2.5, 10: -100.0, 59: 100.0}
    expected = SequenceBiasLogitsProcessor([[[t], b] for t, b in bias.items()])(torch.tensor([[1]]), logits[None])
    assert torch.equal(processed_logits(create_sequence([1], logit_bias=bias), logits), expected[0])


def test_only_allowed_tokens_remain():
    logits = random_logits(VOCAB)
    processed = processed_logits(create_sequence([1], allowed_token_ids=(4, 9, 9)), logits)
    assert processed.isfinite().nonzero()[:, 0].tolist() == [4, 9]
    assert torch.equal(processed[[4, 9]], logits[[4, 9]])


@pytest.mark.parametrize("num_output", [0, 2, 3, 4])
def test_no_stop_before_min_tokens(num_output):
    logits, output = random_logits(VOCAB), [5] * num_output
    sequence = create_sequence([1], output, min_tokens=3, stop_token_ids=(7, 8))
    expected = MinNewTokensLengthLogitsProcessor(1, 3, [EOS, 7, 8])(torch.tensor([[1, *output]]), logits[None].clone())
    assert torch.equal(processed_logits(sequence, logits), expected[0])


def test_min_tokens_without_any_stop_token_bans_nothing():
    logits = random_logits(1, VOCAB)
    sampler = create_sampler(vocab_size=VOCAB, eos_token_ids=())
    [sampled] = sampler.sample([create_sequence([1], min_tokens=3, temperature=0.0)], logits.clone())
    assert sampled.token_id == int(logits.argmax())


@pytest.mark.parametrize("output", [[], [4], [5], [4, 5], [5, 4], [3, 4, 5], [4, 5, 6]], ids=str)
def test_bad_words_of_one_and_more_tokens_equal_those_of_transformers(output):
    logits = random_logits(VOCAB)
    words = [[9], [4, 5], [4, 5, 6], [5, 11]]
    ids = torch.tensor([output], dtype=torch.long)
    expected = NoBadWordsLogitsProcessor(words)(ids, logits[None].clone()) if output else logits[None].clone()
    expected[:, 9] = float("-inf")
    sequence = create_sequence([3, 4, 5], output, bad_words_ids=tuple(map(tuple, words)))
    assert torch.equal(processed_logits(sequence, logits), expected[0])


def test_a_bad_word_that_begins_in_the_prompt_does_not_match():
    logits = random_logits(VOCAB)
    assert torch.equal(processed_logits(create_sequence([1, 4], bad_words_ids=((4, 5),)), logits), logits)


def test_bias_is_applied_before_penalties_and_does_not_lift_bans():
    logits = torch.zeros(VOCAB)
    sequence = create_sequence(
        [1], [4], logit_bias={4: 3.0, 9: 50.0, EOS: 50.0}, repetition_penalty=2.0, bad_words_ids=((9,),), min_tokens=5
    )
    processed = processed_logits(sequence, logits)
    assert processed[4] == 1.5
    assert processed[9] == processed[EOS] == float("-inf")


def test_penalties_affect_the_greedy_choice():
    logits = torch.zeros(1, VOCAB)
    logits[0, 4], logits[0, 5] = 2.0, 1.9
    sampler = create_sampler(vocab_size=VOCAB)
    assert _sample(sampler, [create_sequence([1], [4], temperature=0.0)], logits) == [4]
    assert _sample(sampler, [create_sequence([1], [4], temperature=0.0, presence_penalty=0.2)], logits) == [5]


def test_neighbours_of_a_restricted_sequence_keep_their_logits():
    logits = random_logits(3, VOCAB)
    rows = logits.clone()
    sequences = [create_sequence([1]), create_sequence([1], [3], allowed_token_ids=(3,)), create_sequence([1])]
    create_sampler(vocab_size=VOCAB).sample(sequences, rows)
    assert torch.equal(rows[[0, 2]], logits[[0, 2]])


def test_logprobs_are_of_the_raw_distribution():
    logits = random_logits(1, VOCAB)
    order = logits[0].argsort(descending=True).tolist()
    sequence = create_sequence(
        [1], [order[0]], temperature=0.0, logprobs=3, presence_penalty=100.0, bad_words_ids=((order[1],),)
    )
    [sampled] = create_sampler(vocab_size=VOCAB).sample([sequence], logits.clone())
    raw = torch.log_softmax(logits[0], -1)
    assert sampled.token_id == order[2]
    assert sampled.logprob is not None
    assert sampled.logprob.rank == 3
    assert sampled.logprob.logprob == pytest.approx(float(raw[order[2]]), abs=1e-6)
    assert [t for t, _ in sampled.logprob.top] == order[:3]
    assert [v for _, v in sampled.logprob.top] == pytest.approx(raw[order[:3]].tolist(), abs=1e-6)


def test_logprobs_are_reported_only_where_requested():
    logits = random_logits(3, VOCAB)
    sequences = [create_sequence([1], logprobs=n, temperature=0.0) for n in (None, 0, 4)]
    found = [s.logprob for s in create_sampler(vocab_size=VOCAB).sample(sequences, logits)]
    assert [None if f is None else len(f.top) for f in found] == [None, 0, 4]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_a_row_without_a_possible_token_fails_only_its_request(temperature, broken):
    logits = random_logits(3, VOCAB)
    logits[1] = broken
    sequences = [create_sequence([1], temperature=temperature, seed=i, logprobs=1) for i in range(3)]
    expected = _sample(create_sampler(vocab_size=VOCAB), [sequences[0]], logits[:1])
    sequences[0].generator = None
    sampled = create_sampler(vocab_size=VOCAB).sample(sequences, logits)
    assert [s.error is None for s in sampled] == [True, False, True]
    assert sampled[0].token_id == expected[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_computed_in_inference_mode_are_accepted(dtype):
    with torch.inference_mode():
        logits = random_logits(1, VOCAB).to(dtype)
    [sampled] = create_sampler(vocab_size=VOCAB).sample([create_sequence([1], allowed_token_ids=(7,))], logits)
    assert sampled.token_id == 7


def _sample(sampler: Sampler, sequences: list[Sequence], logits: torch.Tensor) -> list[int]:
    return [s.token_id for s in sampler.sample(sequences, logits.clone())]


def _run(sampler: Sampler, sequences: list[Sequence], steps: torch.Tensor) -> list[list[int]]:
    """The tokens of each step; `steps` has shape [steps, sequences, vocab]."""
    return [_sample(sampler, sequences, logits) for logits in steps]
