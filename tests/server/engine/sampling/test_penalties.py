"""Penalties follow their formulas, independently of the rest of the batch."""

import gc

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from server.engine.sampling.sampler import Penalties
from server.engine.sequence import Sequence
from tests.server.engine.sampling.small_sampler import create_sequence, random_logits

PROMPT = [5, 6, 7, 7, 8]
OUTPUT = [7, 9, 9, 9, 10, 5]


@pytest.mark.parametrize("penalty", [0.5, 1.2, 2.0])
def test_repetition_penalty_equals_that_of_transformers_over_prompt_and_output(penalty):
    logits = random_logits(40)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([PROMPT + OUTPUT]), logits[None].clone())[0]
    assert torch.equal(_penalised(create_sequence(PROMPT, OUTPUT, repetition_penalty=penalty), logits), expected)


def test_frequency_and_presence_follow_openais_formula_over_the_output():
    logits = random_logits(40)
    sequence = create_sequence(PROMPT, OUTPUT, frequency_penalty=0.7, presence_penalty=-0.3)
    expected = [
        float(logits[t]) - OUTPUT.count(t) * 0.7 - float(OUTPUT.count(t) > 0) * -0.3 for t in range(len(logits))
    ]
    assert torch.allclose(_penalised(sequence, logits), torch.tensor(expected), atol=1e-6)


def test_repetition_comes_before_frequency_and_presence():
    logits = torch.full((12,), 2.0)
    sequence = create_sequence([3], [3, 3], repetition_penalty=2.0, frequency_penalty=0.25, presence_penalty=0.125)
    assert _penalised(sequence, logits)[3] == 2.0 / 2 - 2 * 0.25 - 0.125


def test_counts_grow_with_the_sequence():
    penalties = Penalties()
    sequence = create_sequence(list(range(300)), frequency_penalty=1.0)
    for step in range(400):
        logits = torch.zeros(1, 800)
        penalties.apply([sequence], logits)
        counts = torch.bincount(torch.tensor(sequence.output_token_ids, dtype=torch.long), minlength=800)
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
    Penalties().apply(sequences, together)
    for i, sequence in enumerate(sequences):
        assert torch.equal(together[i], _penalised(sequence, logits[i]))
    assert torch.equal(together[1], logits[1])


def test_counts_are_freed_with_their_sequence():
    penalties = Penalties()
    sequence = create_sequence([1], [2], presence_penalty=1.0)
    penalties.apply([sequence], torch.zeros(1, 10))
    assert len(penalties._counts) == 1
    del sequence
    gc.collect()
    assert len(penalties._counts) == 0


def _penalised(sequence: Sequence, logits: torch.Tensor) -> torch.Tensor:
    rows = logits.clone()[None]
    Penalties().apply([sequence], rows)
    return rows[0]
