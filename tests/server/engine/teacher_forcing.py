"""Computes known sequences in random chunks and compares each chunk's logits with a full forward pass."""

import copy
import random
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from server.engine.compute.packed_runner import PackedRunner
from server.engine.memory.kv_cache import KVCache
from server.engine.sequence import Chunk, Sequence
from server.terms.types import SamplingParams


def reference_logits(model: PreTrainedModel, sequences: list[list[int]]) -> list[torch.Tensor]:
    """The plain model's float32 logits of each sequence. Eager, because sdpa ignores Gemma 2's soft cap."""
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    with torch.inference_mode():
        return [plain(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float() for ids in sequences]


def packed_runner(model: PreTrainedModel, *, num_slots: int, slot_len: int) -> PackedRunner:
    runner = PackedRunner(model)
    cache = KVCache(runner.probe(), num_slots=num_slots, slot_len=slot_len, dtype=model.dtype, device=model.device)
    for slot in range(num_slots):
        cache.slots.open(slot)
    runner.use_cache(cache)
    return runner


@dataclass
class TeacherForcing:
    """Advances sequences by random chunks in random slots. Each step skips some sequences."""

    runner: PackedRunner
    sequences: list[Sequence]
    seed: int
    max_chunk: int = 40
    _rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        slots = self._rng.sample(range(self.runner.cache.num_slots), len(self.sequences))
        for sequence, slot in zip(self.sequences, slots, strict=True):
            sequence.slot = slot

    def largest_error(self, references: list[torch.Tensor]) -> float:
        """The largest difference of all chunks from the reference, relative to the largest logit."""
        by_sequence = {id(s): r for s, r in zip(self.sequences, references, strict=True)}
        largest = 0.0
        while chunks := self._next_chunks():
            result = self.runner.step(chunks)
            for chunk, span in zip(result.chunks, result.rows, strict=True):
                reference = by_sequence[id(chunk.sequence)]
                expected = reference[chunk.end - (span.stop - span.start) : chunk.end]
                error = (result.logits[span].float() - expected).abs().max() / reference.abs().max()
                assert torch.isfinite(error)
                largest = max(largest, float(error))
            for chunk in result.chunks:
                chunk.sequence.num_computed_tokens = chunk.end
        return largest

    def _next_chunks(self) -> list[Chunk]:
        unfinished = [s for s in self.sequences if s.num_new_tokens]
        chosen = [s for s in unfinished if self._rng.random() < 0.8] or unfinished[:1]
        sizes = (1 if self._rng.random() < 0.6 else self._rng.randint(2, self.max_chunk) for _ in chosen)
        return [Chunk(s, min(s.num_new_tokens, size)) for s, size in zip(chosen, sizes, strict=True)]


def as_sequences(prompts: list[list[int]], **params: Any) -> list[Sequence]:
    """One sequence per prompt, without computed tokens."""
    return [Sequence(str(i), p, SamplingParams(max_tokens=1, **params)) for i, p in enumerate(prompts)]
