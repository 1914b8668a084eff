"""The interface of runners, and the result of a step."""

from collections.abc import Sequence as Seq
from typing import NamedTuple, Protocol

import torch

from server.engine.lora.layers import AdaptedLayers
from server.engine.sequence import Chunk


class StepLogits(NamedTuple):
    """Logits of one step, shape [rows, vocab]; `rows[i]` are those of `chunks[i]`."""

    chunks: list[Chunk]
    logits: torch.Tensor
    rows: list[slice]


class Runner(Protocol):
    """Computes chunks of sequences. There are two: `packed` and `sequential`."""

    name: str
    can_split_prompts: bool
    """Whether a prompt may be computed in several chunks."""

    def use_adapters(self, adapted: AdaptedLayers) -> None:
        """Sets the layers that LoRA adapters change; without them, sequences must not name an adapter."""

    def step(self, chunks: Seq[Chunk]) -> StepLogits:
        """Logits of each chunk's last token; of all its tokens for prompt log-probabilities."""

    def do_idle_work(self) -> bool:
        """Does a small piece of deferrable work; True while there is more."""
