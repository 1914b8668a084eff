"""Draws one token for each row of logits, with temperature, min-p, top-k and top-p.

A weight is a probability relative to the row's most likely token. A draw compares one uniform number with the
cumulative weights, in double precision. The draw does not depend on other rows, and never takes a token of
weight 0.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import NamedTuple

import torch

from server.terms.types import SamplingParams

_NUM_BEST = 256
"""Top-p first considers this many of the most likely tokens. Most rows need no more."""
_NUM_TIES = 64
"""How many tokens after the k-th are considered first. Many bfloat16 logits are equal, and top-k keeps all
tokens that are as likely as the k-th."""
_GROWTH = 16
_SEED_BITS = 0xFFFFFFFFFFFFFFFF


def new_generator(device: torch.device, seed: int) -> torch.Generator:
    """Returns a generator of uniform random numbers. Any integer is a valid seed."""
    # torch needs this module to create generators. With lean imports, torch does not import it itself.
    import torch._prims.rng_prims  # noqa: PLC0415

    generator = torch.Generator(device=device)
    generator.manual_seed(seed & _SEED_BITS)
    return generator


def draw(logits: torch.Tensor, params: Seq[SamplingParams], uniform: torch.Tensor) -> list[int]:
    """Draws one token id per row.

    Args:
        logits: float32, shape [rows, vocab]. Every row has a finite maximum.
        params: one per row, with temperatures above 0.
        uniform: float64 in [0, 1), shape [rows].
    """
    vocab_size = logits.shape[-1]
    draws = _Draws.build(logits, params, uniform)
    limited = [i for i, p in enumerate(params) if 0 < p.top_k < vocab_size or p.top_p < 1]
    if not limited:
        return _draw_from_all(draws).tolist()
    token_ids = torch.empty(len(params), dtype=torch.long, device=logits.device)
    if len(limited) < len(params):
        free = _index(sorted(set(range(len(params))) - set(limited)), logits.device)
        token_ids[free] = _draw_from_all(draws.select(free))
    num_best = max(params[i].top_k + _NUM_TIES if params[i].top_k else _NUM_BEST for i in limited)
    remaining = _index(limited, logits.device)
    while len(remaining):
        drawn = _draw_from_best(draws.select(remaining), min(num_best, vocab_size))
        token_ids[remaining] = drawn.token_ids
        remaining = remaining[~drawn.is_final]
        num_best *= _GROWTH
    return token_ids.tolist()


@dataclass(frozen=True)
class _Draws:
    """Weights and parameters of draws. Each tensor has one row per draw."""

    weights: torch.Tensor
    """The probability relative to the most likely token, or 0 below min-p. Shape [rows, vocab]."""
    top_k: torch.Tensor
    """The number of tokens that top-k keeps: the vocabulary's size if there is no limit."""
    top_p: torch.Tensor
    uniform: torch.Tensor

    @classmethod
    def build(cls, logits: torch.Tensor, params: Seq[SamplingParams], uniform: torch.Tensor) -> "_Draws":
        vocab_size, device = logits.shape[-1], logits.device
        temperature = torch.tensor([[p.temperature] for p in params], device=device)
        weights = (logits - logits.amax(dim=-1, keepdim=True)).div_(temperature).exp_()
        if any(p.min_p > 0 for p in params):
            weights.mul_(weights >= torch.tensor([[p.min_p] for p in params], device=device))
        return cls(
            weights=weights,
            top_k=_index([p.top_k if 0 < p.top_k < vocab_size else vocab_size for p in params], device),
            top_p=torch.tensor([p.top_p for p in params], dtype=torch.float64, device=device),
            uniform=uniform,
        )

    def select(self, rows: torch.Tensor) -> "_Draws":
        if len(rows) == len(self.weights):
            return self
        return _Draws(self.weights[rows], self.top_k[rows], self.top_p[rows], self.uniform[rows])


class _Drawn(NamedTuple):
    token_ids: torch.Tensor
    is_final: torch.Tensor
    """False if more than `num_best` tokens are needed to decide which tokens are kept."""


def _draw_from_all(draws: _Draws) -> torch.Tensor:
    return _pick(draws.weights.cumsum(dim=-1, dtype=torch.float64), draws.uniform)


def _draw_from_best(draws: _Draws, num_best: int) -> _Drawn:
    """Draws from the tokens that top-k and top-p keep, if these are among the `num_best` most likely.

    Top-k keeps every token that is at least as likely as the k-th token. From these tokens, top-p keeps as
    few as possible, the most likely first, so that their share reaches top-p (arXiv 1904.09751).
    """
    values, indices = torch.topk(draws.weights, num_best)
    last = values[:, -1]
    has_top_k = draws.top_k < draws.weights.shape[-1]
    last_place = draws.top_k.clamp(max=num_best)[:, None] - 1
    kth = values.gather(1, last_place)[:, 0].where(has_top_k, 0.0)
    values = values.masked_fill(values < kth[:, None], 0.0)
    cumulative = values.cumsum(dim=-1, dtype=torch.float64)
    total_of_all = draws.weights.sum(dim=-1, dtype=torch.float64)
    total = torch.where(has_top_k, cumulative[:, -1], total_of_all)
    wanted = (draws.top_p * total)[:, None]
    num_kept = (cumulative - values < wanted).sum(dim=-1).clamp(min=1)
    has_all = torch.where(has_top_k, last < kth, cumulative[:, -1] >= wanted[:, 0])
    is_final = has_all | (last == 0) | (num_best == draws.weights.shape[-1])
    # Limits the cumulative weights to that of the last kept token, so that no later token is drawn.
    kept = cumulative.minimum(cumulative.gather(1, num_kept[:, None] - 1))
    return _Drawn(indices.gather(1, _pick(kept, draws.uniform)[:, None])[:, 0], is_final)


def _pick(cumulative: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Returns the first position whose cumulative weight exceeds the uniform number times the total."""
    return torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0]


def _index(values: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.long, device=device)
