"""Adds adapters' updates to the outputs of a model's layers, in the rows of sequences with adapters."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.nn.functional import embedding, linear
from transformers import PreTrainedModel

from server.engine.lora.adapter import LowRank
from server.engine.sequence import Chunk

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

Rows = slice | torch.Tensor

_MASKED_ROWS: Final = 32
"""Up to so many rows, masked products over all rows are faster than copying each adapter's rows."""


class AdaptedLayers:
    """The layers that loaded adapters change, on the engine's thread.

    Forward hooks add the updates, whether weights are packed or not. The hooks are in place only during
    steps with adapters, so they cost nothing in other steps.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._head = model.get_output_embeddings()
        self._updates: dict[str, dict[int, LowRank]] = {}
        self._handles: list[RemovableHandle] = []
        self._rows: _StepRows | None = None
        """The rows of the running step's tokens. None outside of a step."""
        self._head_rows: _StepRows | None = None
        """The rows of the tokens whose logits are computed."""

    def add(self, adapter_id: int, updates: dict[str, LowRank]) -> None:
        for path, update in updates.items():
            self._updates.setdefault(path, {})[adapter_id] = update
        self._remove_hooks()

    def remove(self, adapter_id: int) -> None:
        for path, updates in list(self._updates.items()):
            updates.pop(adapter_id, None)
            if not updates:
                del self._updates[path]
        self._remove_hooks()

    @property
    def has_hooks(self) -> bool:
        """Whether hooks are in place, which means that the running step has adapters."""
        return bool(self._handles)

    @contextmanager
    def applied(
        self, chunks: Sequence[Chunk], rows: Sequence[slice], head_rows: Sequence[slice] | None = None
    ) -> Iterator[None]:
        """Within the block, a forward pass over the chunks includes the updates of their adapters.

        `rows` are each chunk's rows in the batch. `head_rows` are its rows in the output of the model's
        last layer, if this layer computes fewer rows.
        """
        if any(chunk.sequence.adapter_id for chunk in chunks):
            self._rows = _StepRows(chunks, rows, self._model)
            self._head_rows = self._rows if head_rows is None else _StepRows(chunks, head_rows, self._model)
            if not self._handles:
                self._place_hooks()
        else:
            self._remove_hooks()
        try:
            yield
        finally:
            self._rows = self._head_rows = None

    def _place_hooks(self) -> None:
        for path, updates in self._updates.items():
            module = self._model.get_submodule(path)
            if isinstance(module, nn.Embedding):
                hook = self._create_embedding_hook(updates)
            else:
                hook = self._create_linear_hook(updates, is_head=module is self._head)
            self._handles.append(module.register_forward_hook(hook))

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _create_linear_hook(
        self, updates: dict[int, LowRank], *, is_head: bool
    ) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        stack = _Stack(updates)

        def add_updates(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            step = self._head_rows if is_head else self._rows
            if step is None:
                return
            inputs, flat = args[0].view(-1, args[0].shape[-1]), output.view(-1, output.shape[-1])
            if step.is_masked:
                stack.choose(step.adapter_ids)
                if stack.columns:
                    flat.addmm_(linear(inputs, stack.down).mul_(step.mask(stack.columns)), stack.up)
                return
            for adapter_id, rows in step.by_adapter.items():
                if (update := updates.get(adapter_id)) is not None:
                    _add(flat, rows, linear(inputs[rows], update.down), update.up)

        return add_updates

    def _create_embedding_hook(self, updates: dict[int, LowRank]) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def add_updates(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            for adapter_id, rows in self._rows.by_adapter.items() if self._rows is not None else ():
                if (update := updates.get(adapter_id)) is not None:
                    low = embedding(args[0].view(-1)[rows], update.down)
                    _add(output.view(-1, output.shape[-1]), rows, low, update.up)

        return add_updates


class _Stack:
    """One layer's updates by several adapters, side by side. Two products then compute all updates."""

    def __init__(self, updates: dict[int, LowRank]) -> None:
        self._updates = updates
        self._adapter_ids: tuple[int, ...] | None = None
        self.columns: tuple[tuple[int, int], ...] = ()
        """(adapter, rank) of each part. Empty if no chosen adapter changes the layer."""
        self.down: torch.Tensor
        self.up: torch.Tensor

    def choose(self, adapter_ids: tuple[int, ...]) -> None:
        """Stacks the updates of these adapters, unless they are stacked already."""
        if adapter_ids == self._adapter_ids:
            return
        self._adapter_ids = adapter_ids
        parts = [(i, self._updates[i]) for i in adapter_ids if i in self._updates]
        self.columns = tuple((adapter_id, update.up.shape[0]) for adapter_id, update in parts)
        if parts:
            self.down = torch.cat([update.down for _, update in parts])
            self.up = torch.cat([update.up for _, update in parts])


def _add(output: torch.Tensor, rows: Rows, low: torch.Tensor, up: torch.Tensor) -> None:
    if isinstance(rows, slice):
        output[rows].addmm_(low, up)
    else:
        output.index_add_(0, rows, low @ up)


class _StepRows:
    """The rows of one step: all rows, or the rows whose logits are computed."""

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
        """Adapter -> its rows. The base model has no entry."""
        self.adapter_ids = tuple(sorted(spans))
        self.is_masked = not self._is_one_block and self._num_rows <= _MASKED_ROWS
        """Whether products cover all rows. `mask` then clears the values that belong to no adapter."""

    @property
    def _is_one_block(self) -> bool:
        return len(self.by_adapter) == 1 and isinstance(next(iter(self.by_adapter.values())), slice)

    def mask(self, columns: tuple[tuple[int, int], ...]) -> torch.Tensor:
        """Returns a matrix with 1 where a row belongs to the adapter of the column, and 0 elsewhere.

        `columns` has each adapter, and the adapter's number of columns.
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
    """Joins spans. The result is one slice if the spans are adjacent, so that no rows are copied."""
    if all(a.stop == b.start for a, b in zip(spans, spans[1:], strict=False)):
        return slice(spans[0].start, spans[-1].stop)
    return torch.tensor([row for span in spans for row in range(span.start, span.stop)], device=device)
