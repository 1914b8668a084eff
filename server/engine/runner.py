"""What the engine core asks of a runner, and the step's result."""

from collections.abc import Sequence as Seq
from typing import NamedTuple, Protocol

import torch

from server.engine.batch import Chunk


class StepLogits(NamedTuple):
    """Logits of one step, shape [rows, vocab]; `rows[i]` are those of `chunks[i]`."""

    chunks: list[Chunk]
    logits: torch.Tensor
    rows: list[slice]


class Runner(Protocol):
    """Computes chunks of sequences; two ways to do it, `packed` and `sequential`."""

    name: str
    can_split_prompts: bool
    """Whether a prompt may be computed in several chunks."""

    def step(self, chunks: Seq[Chunk]) -> StepLogits:
        """Logits for each chunk's last token; for all its tokens where the prompt's log-probabilities are due."""

    def idle(self) -> bool:
        """Does a small piece of work that can wait; True while there is more."""
