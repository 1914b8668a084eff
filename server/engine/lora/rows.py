"""Which rows of a step belong to which adapter."""

from collections.abc import Sequence
from typing import Final

import torch
from transformers import PreTrainedModel

from server.engine.sequence import Chunk

Rows = slice | torch.Tensor

_MASKED_ROWS: Final = 32
"""Up to this many rows, products over all rows with a mask are faster than copies of each adapter's rows."""


class StepRows:
    """The rows of one step, or those of them whose logits are computed."""

    def __init__(self, chunks: Sequence[Chunk], rows: Sequence[slice], model: PreTrainedModel) -> None:
        spans: dict[int, list[slice]] = {}
        for chunk, span in zip(chunks, rows, strict=True):
            spans.setdefault(chunk.sequence.adapter_id, []).append(span)
        spans.pop(0, None)
        self._spans = spans
        self._device, self._dtype = model.device, model.dtype
        self._masks: dict[tuple[tuple[int, int], ...], torch.Tensor] = {}
        self._num_rows = rows[-1].stop if rows else 0
        self.by_adapter = {adapter_id: _join(parts, model.device) for adapter_id, parts in spans.items()}
        """Without the rows of the base model."""
        self.adapter_ids = tuple(sorted(spans))
        self.is_masked = not self._is_one_block and self._num_rows <= _MASKED_ROWS
        """Whether to compute all rows and to clear with `mask` what does not belong to an adapter."""

    @property
    def _is_one_block(self) -> bool:
        return len(self.by_adapter) == 1 and isinstance(next(iter(self.by_adapter.values())), slice)

    def mask(self, columns: tuple[tuple[int, int], ...]) -> torch.Tensor:
        """1 where a row belongs to the adapter of the column, else 0.

        Args:
            columns: adapters, and how many columns each has.
        """
        if columns not in self._masks:
            mask = torch.zeros((self._num_rows, sum(count for _, count in columns)))
            first = 0
            for adapter_id, count in columns:
                for span in self._spans[adapter_id]:
                    mask[span, first : first + count] = 1
                first += count
            self._masks[columns] = mask.to(dtype=self._dtype, device=self._device)
        return self._masks[columns]


def _join(spans: list[slice], device: torch.device) -> Rows:
    """One slice if the spans are adjacent, which saves copies of the rows."""
    if all(a.stop == b.start for a, b in zip(spans, spans[1:], strict=False)):
        return slice(spans[0].start, spans[-1].stop)
    return torch.tensor([row for span in spans for row in range(span.start, span.stop)], device=device)
