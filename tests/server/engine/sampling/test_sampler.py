"""Sampling parameters work as in vLLM and OpenAI, in vLLM's order, and only for their own sequence."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from server.engine.sampling.grammar_trial import TokenizerSource
from server.engine.sampling.guided import GuidedStates
from server.engine.sampling.sampler import Sampler, apply_penalties, describe
from server.engine.sequence import Sequence
from server.terms.types import SamplingParams, TokenLogprob
from tests.server.inline_executor import InlineExecutor

EOS = 2


def create_sampler(*, vocab_size: int, seed: int = 0) -> Sampler:
    """A sampler without a tokenizer for grammars."""
    guided = GuidedStates(
        tokenizer=TokenizerSource(None, vocab_size, (EOS,)),
        executor=InlineExecutor(),
        trial_executor=InlineExecutor(),
    )
    return Sampler(eos_token_ids=(EOS,), max_model_len=1 << 20, seed=seed, device=torch.device("cpu"), guided=guided)


def create_sequence(
    prompt: list[int], output: list[int] | None = None, *, request_id: str = "a", **params: Any
) -> Sequence:
    sequence = Sequence(request_id, prompt, SamplingParams(**({"max_tokens": 1000} | params)))
    sequence.token_ids += output or []
    return sequence


def processed_logits(sequence: Sequence, logits: torch.Tensor) -> torch.Tensor:
    """The logits from which the sampler chooses. The sampler overwrites float32 logits in place."""
    row = logits.clone()[None]
    create_sampler(vocab_size=logits.shape[-1]).sample([sequence], row)
    return row[0]


def random_logits(*shape: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


class LargestTensor(TorchDispatchMode):
    """Notes the bytes of the largest tensor that an operation creates."""

    num_bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        made = [each for each in tree_leaves(result) if isinstance(each, torch.Tensor) and not each._is_view()]
        self.num_bytes = max([self.num_bytes, *(tensor.nbytes for tensor in made)])
        return result


@pytest.mark.parametrize(
    "params",
    [{}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"logprobs": 20}, {"frequency_penalty": 1.0}, {"seed": 1}],
    ids=str,
)
def test_a_step_of_many_sequences_needs_no_more_memory_than_one_of_few(params):
    largest = []
    for number in (32, 256):
        sequences = [create_sequence([1], [3], request_id=str(i), **params) for i in range(number)]
        logits = random_logits(number, 5000).bfloat16()
        with LargestTensor() as noted:
            create_sampler(vocab_size=5000).sample(sequences, logits)
        largest.append(noted.num_bytes)
    assert largest[0] == largest[1] > 0


VOCAB = 60
CHI_SQUARE_1_IN_10000 = 25.0
"""A limit that a correct sampler exceeds for about 1 of 10000 seeds (exactly 25.7, 5 degrees of freedom)."""


@pytest.mark.parametrize("temperature", [0.0, 1e-6])
def test_temperature_zero_takes_the_most_likely_token_with_any_other_parameter(temperature):
    logits = random_logits(6, VOCAB)
    sequences = [create_sequence([1], temperature=temperature, top_k=5, seed=i) for i in range(6)]
    assert _sample(create_sampler(vocab_size=VOCAB), sequences, logits) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("seed", [None, 3])
def test_draws_follow_the_distribution(seed):
    probabilities = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.07, 0.03])
    sampler = create_sampler(vocab_size=6, seed=11)
    sequences = [create_sequence([1], seed=seed and seed + i) for i in range(100)]
    drawn: list[int] = []
    for _ in range(50):
        drawn += _sample(sampler, sequences, probabilities.log().repeat(100, 1))
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


@pytest.mark.parametrize("num_output", [0, 2, 3, 4])
def test_no_stop_before_min_tokens(num_output):
    logits, output = random_logits(VOCAB), [5] * num_output
    sequence = create_sequence([1], output, min_tokens=3, stop_token_ids=(7, 8))
    expected = MinNewTokensLengthLogitsProcessor(1, 3, [EOS, 7, 8])(torch.tensor([[1, *output]]), logits[None].clone())
    assert torch.equal(processed_logits(sequence, logits), expected[0])


def test_bias_is_applied_before_penalties_and_does_not_lift_bans():
    logits = torch.zeros(VOCAB)
    sequence = create_sequence([1], [4], logit_bias={4: 3.0, EOS: 50.0}, repetition_penalty=2.0, min_tokens=5)
    processed = processed_logits(sequence, logits)
    assert processed[4] == 1.5
    assert processed[EOS] == float("-inf")


def test_only_allowed_tokens_remain_and_neighbours_keep_their_logits():
    logits = random_logits(3, VOCAB)
    rows = logits.clone()
    sequences = [create_sequence([1]), create_sequence([1], [3], allowed_token_ids=(4, 9, 9)), create_sequence([1])]
    create_sampler(vocab_size=VOCAB).sample(sequences, rows)
    assert rows[1].isfinite().nonzero()[:, 0].tolist() == [4, 9]
    assert torch.equal(rows[1, [4, 9]], logits[1, [4, 9]])
    assert torch.equal(rows[[0, 2]], logits[[0, 2]])


def test_reported_logprobs_are_of_the_raw_distribution():
    logits = random_logits(1, VOCAB)
    order = logits[0].argsort(descending=True).tolist()
    sequence = create_sequence(
        [1], [order[0]], temperature=0.0, logprobs=3, presence_penalty=100.0, logit_bias={order[1]: -100.0}
    )
    [sampled] = create_sampler(vocab_size=VOCAB).sample([sequence], logits.clone())
    raw = torch.log_softmax(logits[0], -1)
    assert sampled.token_id == order[2]
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
    """The tokens of each step. The shape of `steps` is [steps, sequences, vocab]."""
    return [_sample(sampler, sequences, logits) for logits in steps]


PROMPT = [5, 6, 7, 7, 8]
OUTPUT = [7, 9, 9, 9, 10, 5]


@pytest.mark.parametrize(
    ("repetition", "frequency", "presence"), [(0.5, 0.0, 0.0), (1.2, 0.0, 0.0), (2.0, 0.25, 0.125), (1.0, 0.7, -0.3)]
)
def test_repetition_is_penalised_as_in_transformers_and_then_by_openais_formula(repetition, frequency, presence):
    """OpenAI's formula counts only the output."""
    penalties = {"frequency_penalty": frequency, "presence_penalty": presence}
    sequence = create_sequence(PROMPT, OUTPUT, repetition_penalty=repetition, **penalties)
    logits = random_logits(40)
    expected = RepetitionPenaltyLogitsProcessor(repetition)(torch.tensor([PROMPT + OUTPUT]), logits[None].clone())[0]
    expected -= torch.tensor([OUTPUT.count(t) * frequency + (t in OUTPUT) * presence for t in range(40)])
    assert torch.allclose(_penalised(sequence, logits), expected, atol=1e-6, rtol=0)


def test_counts_grow_with_the_sequence():
    sequence = create_sequence(list(range(300)), frequency_penalty=1.0)
    for step in range(400):
        logits = torch.zeros(1, 800)
        apply_penalties([sequence], logits)
        counts = torch.bincount(torch.tensor(sequence.token_ids[300:], dtype=torch.long), minlength=800)
        assert torch.equal(logits[0], -counts.float())
        sequence.token_ids.append(step * step % 700)


def test_rows_are_penalised_for_their_own_tokens_only():
    logits = random_logits(4, 40)
    sequences = [
        create_sequence([1], [2, 2], presence_penalty=1.0),
        create_sequence([3], [4]),
        create_sequence([5], [6], repetition_penalty=1.5),
        create_sequence([1], [2, 2], frequency_penalty=1.0),
    ]
    together = logits.clone()
    apply_penalties(sequences, together)
    for i, sequence in enumerate(sequences):
        assert torch.equal(together[i], _penalised(sequence, logits[i]))
    assert torch.equal(together[1], logits[1])


def _penalised(sequence: Sequence, logits: torch.Tensor) -> torch.Tensor:
    rows = logits.clone()[None]
    apply_penalties([sequence], rows)
    return rows[0]


@pytest.mark.parametrize("num_rows", [1, 64, 65, 150])
def test_every_row_reports_its_own_distribution(num_rows):
    logits = random_logits(num_rows, 90)
    token_ids = [(7 * i) % 90 for i in range(num_rows)]
    nums_top = [i % 6 for i in range(num_rows)]
    expected = torch.log_softmax(logits, dim=-1)
    described = describe(logits, token_ids, nums_top)
    assert len(described) == num_rows
    for row, token_id, num_top, found in zip(expected, token_ids, nums_top, described, strict=True):
        order = row.argsort(descending=True).tolist()
        assert found == TokenLogprob(
            token_id, float(row[token_id]), order.index(token_id) + 1, [(t, float(row[t])) for t in order[:num_top]]
        )


def test_impossible_tokens_have_a_finite_logprob_and_equally_likely_ones_share_a_rank():
    impossible, likely = describe(torch.tensor([[0.0, float("-inf"), 0.0]] * 2), [1, 2], [3, 0])
    assert (impossible.logprob, impossible.rank, impossible.top[2]) == (-9999.0, 3, (1, -9999.0))
    assert likely.rank == 1
