"""Builds samplers and sequences with generated tokens for the tests of sampling."""

from pathlib import Path
from typing import Any

import torch

from server.engine.sampling.guided import GuidedStates
from server.engine.sampling.sampler import Sampler
from server.engine.sequence import Sequence
from server.types import SamplingParams
from tests.server.inline_executor import InlineExecutor

EOS = 2


def create_sampler(*, vocab_size: int, seed: int = 0, eos_token_ids: tuple[int, ...] = (EOS,)) -> Sampler:
    """A sampler without a tokenizer for grammars."""
    guided = GuidedStates(
        tokenizer_path=Path("nowhere"),
        vocab_size=vocab_size,
        eos_token_ids=eos_token_ids,
        executor=InlineExecutor(),
    )
    return Sampler(
        eos_token_ids=eos_token_ids, max_model_len=1 << 20, seed=seed, device=torch.device("cpu"), guided=guided
    )


def create_sequence(
    prompt: list[int], output: list[int] | None = None, *, request_id: str = "a", **params: Any
) -> Sequence:
    """A sequence with `output` already generated."""
    sequence = Sequence(request_id, prompt, SamplingParams(**({"max_tokens": 1000} | params)))
    sequence.token_ids += output or []
    return sequence


def processed_logits(sequence: Sequence, logits: torch.Tensor) -> torch.Tensor:
    """The logits from which the sampler chooses; it overwrites float32 logits in place."""
    row = logits.clone()[None]
    create_sampler(vocab_size=logits.shape[-1]).sample([sequence], row)
    return row[0]


def random_logits(*shape: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    """Normally distributed logits."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale
