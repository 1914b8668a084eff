"""Drawn tokens follow the distribution of transformers' own logits processors."""

import math
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from server.engine.sampling.drawing import draw
from server.terms.types import SamplingParams
from tests.server.engine.sampling.test_sampler import random_logits

pytestmark = pytest.mark.thorough

LIMITS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 10_000},
    {"top_p": 0.9},
    {"top_p": 0.5, "temperature": 1.7},
    {"top_p": 1e-6},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"min_p": 0.02, "top_k": 20, "top_p": 0.8, "temperature": 1.3},
    {"top_k": 30, "top_p": 0.6},
]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("vocab_size", [150, 1000], ids=["all at once", "best first"])
def test_shares_equal_those_of_transformers_processors(limits, vocab_size):
    logits = random_logits(vocab_size, seed=vocab_size)
    expected = _expected(logits, limits)
    shares = _shares(logits, limits, num_draws=4000)
    assert (shares - expected).abs().max() <= 1 / 4000 + 1e-6
    assert not shares[expected == 0].any()


@pytest.mark.parametrize("limits", [{"top_p": 0.9}, {"top_p": 0.999}, {"top_k": 700}, {"top_k": 300, "top_p": 0.95}])
def test_flat_distributions_consider_more_than_the_first_best_tokens(limits):
    logits = random_logits(1000, scale=0.05)
    expected = _expected(logits, limits)
    assert (expected > 0).sum() > 256
    shares = _shares(logits, limits, num_draws=1500)
    assert torch.equal(shares > 0, expected > 0)
    assert (shares - expected).abs().max() <= 1 / 1500 + 1e-6


def test_all_tokens_as_likely_as_the_kth_are_kept():
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, 2.0, 0.0])
    assert (_shares(logits, {"top_k": 3}) > 0).tolist() == [False, True, True, True, True, True, False]


def test_a_thousand_equal_tokens_are_all_kept_by_top_k():
    logits = torch.zeros(2000)
    logits[1000:] = 1.0
    shares = _shares(logits, {"top_k": 5})
    assert torch.equal(shares[1000:], torch.full((1000,), 1 / 1000))
    assert not shares[:1000].any()


def test_top_p_keeps_the_token_that_reaches_it_and_no_more():
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    kept = [int((_shares(logits, {"top_p": p}) > 0).sum()) for p in (0.4, 0.5, 0.51, 0.75, 0.76, 0.9)]
    assert kept == [1, 1, 2, 2, 3, 4]


@pytest.mark.parametrize("limits", [{}, {"top_p": 0.99}, {"top_k": 3}], ids=str)
def test_excluded_tokens_are_never_drawn_at_either_end(limits):
    logits = torch.full((500,), float("-inf"))
    logits[[3, 400]] = 0.0
    uniform = torch.tensor([0.0, 1e-300, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits.repeat(4, 1), [_params(limits)] * 4, uniform) == [3, 3, 400, 400]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 1000, 4097])
def test_the_largest_uniform_number_draws_the_last_token(size):
    uniform = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert draw(random_logits(1, size, scale=0.1), [_params({})], uniform) == [size - 1]


def test_a_rows_draw_does_not_depend_on_other_rows():
    kinds = [_params(limits) for limits in LIMITS]
    logits = random_logits(len(kinds), 2000)
    uniform = torch.rand(len(kinds), dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    together = draw(logits, kinds, uniform)
    alone = [draw(logits[i : i + 1], [kinds[i]], uniform[i : i + 1])[0] for i in range(len(kinds))]
    assert together == alone


def test_a_tiny_temperature_draws_the_most_likely_token():
    logits = random_logits(64, 300)
    uniform = torch.linspace(0, 1 - 1e-9, 64, dtype=torch.float64)
    assert draw(logits, [_params({"temperature": 2e-5})] * 64, uniform) == logits.argmax(-1).tolist()


def _shares(logits: torch.Tensor, limits: dict[str, Any], num_draws: int = 2000) -> torch.Tensor:
    """Each token's share of draws. It is nearly the probability, because draws are evenly spaced."""
    uniform = (torch.arange(num_draws, dtype=torch.float64) + 0.5) / num_draws
    drawn: list[int] = []
    for part in torch.split(uniform, 1000):
        drawn += draw(logits.repeat(len(part), 1), [_params(limits)] * len(part), part)
    return torch.bincount(torch.tensor(drawn), minlength=len(logits)) / num_draws


def _params(limits: dict[str, Any]) -> SamplingParams:
    return SamplingParams(max_tokens=1, **limits)


def _expected(logits: torch.Tensor, limits: dict[str, Any]) -> torch.Tensor:
    processors = LogitsProcessorList()
    for name, build in (
        ("temperature", TemperatureLogitsWarper),
        ("min_p", MinPLogitsWarper),
        ("top_k", TopKLogitsWarper),
        ("top_p", TopPLogitsWarper),
    ):
        if name in limits:
            processors.append(build(limits[name]))
    expected: torch.Tensor = processors(torch.zeros(1, 1, dtype=torch.long), logits[None].clone())[0].softmax(-1)
    assert math.isclose(float(expected.sum()), 1.0, rel_tol=1e-5)
    return expected
