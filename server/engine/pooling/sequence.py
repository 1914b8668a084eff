"""One prompt to be pooled, and the choice of prompts for a step."""

from dataclasses import dataclass, field
from time import monotonic

from server.types import PoolingParams


@dataclass(frozen=True, slots=True)
class PoolingSequence:
    """A prompt and its pooling parameters."""

    request_id: str
    token_ids: list[int]
    params: PoolingParams
    token_type_ids: list[int] | None = None
    """The text of a pair that each token belongs to; None for a single text."""
    arrival_s: float = field(default_factory=monotonic)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """Limits of a step."""

    max_num_seqs: int
    max_num_batched_tokens: int
    """Including padding; a single sequence may be longer."""


def choose_batch(waiting: list[PoolingSequence], limits: BatchLimits) -> list[PoolingSequence]:
    """Chooses the sequence that has waited longest and those whose lengths are nearest to its own.

    A batch is padded to its longest sequence, so that similar lengths waste the least. As the oldest sequence
    is always chosen, none waits for ever.
    """
    oldest = waiting[0]
    window = sorted(waiting[: limits.max_num_seqs], key=lambda sequence: sequence.num_tokens)
    begin = next(index for index, sequence in enumerate(window) if sequence is oldest)
    end = begin + 1
    while True:
        size = end - begin + 1
        sides: list[tuple[int, bool]] = []
        if begin and window[end - 1].num_tokens * size <= limits.max_num_batched_tokens:
            sides.append((oldest.num_tokens - window[begin - 1].num_tokens, False))
        if end < len(window) and window[end].num_tokens * size <= limits.max_num_batched_tokens:
            sides.append((window[end].num_tokens - oldest.num_tokens, True))
        if not sides:
            return window[begin:end]
        _, grows_up = min(sides)
        begin, end = (begin, end + 1) if grows_up else (begin - 1, end)
