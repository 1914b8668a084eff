"""Repetition, presence and frequency penalties, applied to a whole batch at once."""

from collections.abc import Sequence as Seq
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch

from server.engine.sequence import Sequence

_NAMES = ("repetition_penalty", "frequency_penalty", "presence_penalty")


class Penalties:
    """Counts the tokens of penalised sequences incrementally, so that a step reads only new tokens."""

    def __init__(self) -> None:
        self._counts: WeakKeyDictionary[Sequence, _TokenCounts] = WeakKeyDictionary()

    def apply(self, sequences: Seq[Sequence], logits: torch.Tensor) -> None:
        """Changes `logits`, one row per sequence, in place.

        Repetition over prompt and output (CTRL, arXiv 1909.05858), then frequency and presence over output.
        """
        penalised = [(i, s) for i, s in enumerate(sequences) if _has_penalty(s)]
        if not penalised:
            return
        counts = [self._count(s) for _, s in penalised]
        lengths = [c.num_tokens for c in counts]
        flat = np.concatenate([c.token_ids + i * logits.shape[-1] for c, (i, _) in zip(counts, penalised, strict=True)])
        where = torch.from_numpy(flat).to(logits.device)
        output_counts = torch.from_numpy(np.concatenate([c.output_counts for c in counts])).to(logits.device)
        params = [[getattr(s.params, name) for _, s in penalised] for name in _NAMES]
        repetition, frequency, presence = torch.tensor(params, device=logits.device).repeat_interleave(
            torch.tensor(lengths, device=logits.device), dim=1
        )
        values = logits.view(-1)[where]
        values = torch.where(values > 0, values / repetition, values * repetition)
        values -= frequency * output_counts + presence * (output_counts > 0)
        logits.view(-1)[where] = values

    def _count(self, sequence: Sequence) -> "_TokenCounts":
        counts = self._counts.get(sequence)
        if counts is None:
            counts = self._counts[sequence] = _TokenCounts()
        counts.update(sequence)
        return counts


def _has_penalty(sequence: Sequence) -> bool:
    p = sequence.params
    return bool(p.presence_penalty or p.frequency_penalty or p.repetition_penalty != 1.0)


class _TokenCounts:
    """The distinct tokens of one sequence and how often each occurs in its output."""

    def __init__(self) -> None:
        self._positions: dict[int, int] = {}
        self._token_ids = np.zeros(256, dtype=np.int64)
        self._output_counts = np.zeros(256, dtype=np.float32)
        self._num_seen = 0

    @property
    def num_tokens(self) -> int:
        return len(self._positions)

    @property
    def token_ids(self) -> npt.NDArray[np.int64]:
        return self._token_ids[: self.num_tokens]

    @property
    def output_counts(self) -> npt.NDArray[np.float32]:
        return self._output_counts[: self.num_tokens]

    def update(self, sequence: Sequence) -> None:
        """Counts the tokens appended since the last call."""
        for i in range(max(self._num_seen, sequence.num_unknown_tokens), sequence.num_tokens):
            position = self._find(sequence.token_ids[i])
            self._output_counts[position] += i >= sequence.num_prompt_tokens
        self._num_seen = sequence.num_tokens

    def _find(self, token_id: int) -> int:
        position = self._positions.setdefault(token_id, len(self._positions))
        if position == len(self._token_ids):
            self._token_ids = np.concatenate([self._token_ids, np.zeros_like(self._token_ids)])
            self._output_counts = np.concatenate([self._output_counts, np.zeros_like(self._output_counts)])
        if position == self.num_tokens - 1:
            self._token_ids[position] = token_id
        return position
