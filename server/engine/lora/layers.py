"""Adds the updates of adapters to the outputs of a model's layers, for the rows of their sequences."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import embedding, linear
from transformers import PreTrainedModel

from server.engine.batch import Chunk
from server.engine.lora.adapter import LowRank

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

Rows = slice | torch.Tensor


class AdaptedLayers:
    """The layers that loaded adapters change; used on the engine's thread.

    Forward hooks, so that layers compute with packed weights or not. They are only in place for steps with
    adapters: other steps cost nothing.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._head = model.get_output_embeddings()
        self._updates: dict[str, dict[int, LowRank]] = {}
        self._handles: list[RemovableHandle] = []
        self._rows: dict[int, Rows] = {}
        """The tokens of each adapter in the running step; empty outside of a step."""
        self._head_rows: dict[int, Rows] = {}
        """The same among the tokens whose logits are computed."""

    def add(self, adapter_id: int, updates: dict[str, LowRank]) -> None:
        """Takes an adapter's weights."""
        for path, update in updates.items():
            self._updates.setdefault(path, {})[adapter_id] = update
        self._remove_hooks()

    def remove(self, adapter_id: int) -> None:
        """Frees an adapter's weights."""
        for path, updates in list(self._updates.items()):
            updates.pop(adapter_id, None)
            if not updates:
                del self._updates[path]
        self._remove_hooks()

    @contextmanager
    def applied(
        self, chunks: Sequence[Chunk], rows: Sequence[slice], head_rows: Sequence[slice] | None = None
    ) -> Iterator[None]:
        """While open, a forward pass over the chunks adds their adapters' updates.

        Args:
            rows: each chunk's rows of the batch.
            head_rows: the same for the model's last layer, if it computes fewer rows.
        """
        self._rows = self._by_adapter(chunks, rows)
        self._head_rows = self._rows if head_rows is None else self._by_adapter(chunks, head_rows)
        if self._rows and not self._handles:
            self._place_hooks()
        elif not self._rows:
            self._remove_hooks()
        try:
            yield
        finally:
            self._rows = self._head_rows = {}

    def _by_adapter(self, chunks: Sequence[Chunk], rows: Sequence[slice]) -> dict[int, Rows]:
        spans: dict[int, list[slice]] = {}
        for chunk, span in zip(chunks, rows, strict=True):
            if chunk.sequence.adapter_id:
                spans.setdefault(chunk.sequence.adapter_id, []).append(span)
        return {adapter_id: _join(parts, self._model.device) for adapter_id, parts in spans.items()}

    def _place_hooks(self) -> None:
        for path, updates in self._updates.items():
            module = self._model.get_submodule(path)
            hook = self._create_hook(
                updates, is_head=module is self._head, is_embedding=isinstance(module, nn.Embedding)
            )
            self._handles.append(module.register_forward_hook(hook))

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _create_hook(
        self, updates: dict[int, LowRank], *, is_head: bool, is_embedding: bool
    ) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        compute = _update_embedding if is_embedding else _update_linear

        def add_updates(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            rows_of = self._head_rows if is_head else self._rows
            for adapter_id, rows in rows_of.items():
                if (update := updates.get(adapter_id)) is not None:
                    compute(update, rows, args[0], output)

        return add_updates


def _update_linear(update: LowRank, rows: Rows, inputs: torch.Tensor, output: torch.Tensor) -> None:
    flat = output.view(-1, output.shape[-1])
    selected = inputs.view(-1, inputs.shape[-1])[rows]
    _add(flat, rows, linear(selected, update.down), update.up)


def _update_embedding(update: LowRank, rows: Rows, ids: torch.Tensor, output: torch.Tensor) -> None:
    _add(output.view(-1, output.shape[-1]), rows, embedding(ids.view(-1)[rows], update.down), update.up)


def _add(output: torch.Tensor, rows: Rows, low: torch.Tensor, up: torch.Tensor) -> None:
    if isinstance(rows, slice):
        output[rows].addmm_(low, up)
    else:
        output.index_add_(0, rows, low @ up)


def _join(spans: list[slice], device: torch.device) -> Rows:
    """One slice if the spans are adjacent, which saves copies of the rows."""
    if all(a.stop == b.start for a, b in zip(spans, spans[1:], strict=False)):
        return slice(spans[0].start, spans[-1].stop)
    return torch.tensor([row for span in spans for row in range(span.start, span.stop)], device=device)
