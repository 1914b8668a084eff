"""Reported log-probabilities are those of the raw distribution, most likely first, and finite."""

import pytest
import torch

from server.engine.sampling.sampler import describe
from server.types import TokenLogprob
from tests.server.engine.sampling.small_sampler import random_logits


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


def test_impossible_tokens_have_a_finite_logprob():
    logits = torch.tensor([[0.0, float("-inf"), 0.0]])
    [found] = describe(logits, [1], [3])
    assert found.logprob == -9999.0
    assert found.rank == 3
    assert found.top[2] == (1, -9999.0)


def test_equally_likely_tokens_share_a_rank():
    [found] = describe(torch.tensor([[1.0, 2.0, 2.0, 0.0]]), [2], [0])
    assert found.rank == 1


def test_half_precision_logits_are_normalised_in_float32():
    logits = random_logits(1, 5000).bfloat16()
    [found] = describe(logits, [17], [0])
    assert found.logprob == pytest.approx(float(torch.log_softmax(logits.float(), -1)[0, 17]), abs=1e-6)


def test_more_top_tokens_than_the_vocabulary_report_all_tokens():
    [found] = describe(random_logits(1, 5), [0], [20])
    assert sorted(t for t, _ in found.top) == [0, 1, 2, 3, 4]
