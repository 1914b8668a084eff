"""Computes attention over a packed batch. Layers call it through transformers' attention interface.

Each layer writes the step's keys and values into the KV cache, and attends per sequence. Decoding sequences
in neighbouring slots share one attention call. Each prompt chunk has a call of its own. For decoding
sequences, grouped query heads are folded into the query length, so that each key is read only once for all
query heads of its group.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch

from server.engine.compute.attention_kernels import (
    AttentionPart,
    KeyValueCopies,
    additive_mask,
    attend,
    attend_in_parts,
    attend_to_part,
    can_attend_in_parts,
    merge_attention,
    repeat_heads,
)
from server.engine.compute.batch import DecodeGroup, PackedBatch, PrefillChunk
from server.engine.memory.kv_cache import KVCache, LayerShape

_MIN_PART_TOKENS = 1024
"""The fewest keys in a part. Smaller parts save less than the 0.1 ms that merging parts costs."""
_KNOWN_KWARGS = {"scaling", "dropout", "sliding_window", "softcap", "s_aux", "is_causal", "position_ids", "use_cache"}


class UnsupportedAttentionError(Exception):
    """The model's attention needs something that packed batches do not support."""


@dataclass(frozen=True)
class AttentionOptions:
    """The options of a layer beyond plain scaled dot-product attention."""

    scale: float | None
    sliding_window: int | None
    softcap: float | None
    sinks: torch.Tensor | None
    """The logit of an attention sink for each query head (gpt-oss). None if the layer has no sinks."""

    @property
    def needs_eager(self) -> bool:
        """Whether torch's fused kernels cannot compute this attention, because of a soft cap or sinks."""
        return self.softcap is not None or self.sinks is not None


_numbers = count()
_attentions: "WeakValueDictionary[int, PackedAttention]" = WeakValueDictionary()
"""Number -> attention object. Operators in graphs take the number, because they cannot take objects. A
server has one such object, and tests have many."""


class PackedAttention:
    """The attention function that is registered with transformers. An engine has one such object.

    The runner sets `batch` before a forward pass. Without a `batch`, a call only records the layer's shape
    in `shapes`. The KV cache's size is computed from these shapes.
    """

    def __init__(self) -> None:
        self.batch: PackedBatch | None = None
        self.cache: KVCache | None = None
        self.shapes: dict[int, LayerShape] = {}
        self._options: dict[int, AttentionOptions] = {}
        """Traced layer -> the options that were recorded with its graph."""
        self._copies = KeyValueCopies()
        self._is_detached = False
        self._number = next(_numbers)
        _attentions[self._number] = self

    @contextmanager
    def detached(self) -> Iterator[None]:
        """Within the block, tokens attend only to tokens of the same call. Batch and cache are not used."""
        self._is_detached = True
        try:
            yield
        finally:
            self._is_detached = False

    @staticmethod
    def attend_in(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention: int, layer: int
    ) -> torch.Tensor:
        """Called by a traced layer. Its options were recorded before. `attention`: a key of `_attentions`."""
        self = _attentions[attention]
        return self._attend(layer, query, key, value, self._options[layer])

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """query [1, heads, tokens, dim], key, value [1, kv_heads, tokens, dim] -> [1, tokens, heads, dim]."""
        options = _read_options(module, attention_mask, kwargs)
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        if torch._C._is_tracing():
            self._options[layer] = options
            return torch.ops.vllm_cli.attend(query, key, value, self._number, layer), None
        return self._attend(layer, query, key, value, options), None

    def _attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        if self._is_detached:
            return attend(query, key, value, is_causal=query.shape[2] > 1, scale=options.scale).transpose(1, 2)
        if self.batch is None or self.cache is None:
            return self._record(layer, query, key, value)
        keys_by_token, values_by_token = key[0].transpose(0, 1), value[0].transpose(0, 1)
        self.cache.store(layer, self.batch.cache_index, keys_by_token, values_by_token)
        parts = [self._decode(layer, group, query, options) for group in self.batch.decode_groups]
        parts += [self._prefill(layer, chunk, query, key, value, options) for chunk in self.batch.prefills]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).unsqueeze(0)

    def _record(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        if layer in self.shapes:
            raise UnsupportedAttentionError(f"layer {layer} attends more than once")
        if query.shape[0] != 1 or query.shape[2] != key.shape[2]:
            raise UnsupportedAttentionError(f"query {tuple(query.shape)} and key {tuple(key.shape)} do not match")
        self.shapes[layer] = LayerShape(key.shape[1], key.shape[3], value.shape[3])
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])

    def _decode(self, layer: int, group: DecodeGroup, query: torch.Tensor, options: AttentionOptions) -> torch.Tensor:
        assert self.cache is not None
        keys, values = self.cache.read(layer, group.first_slot, group.last_slot, group.length)
        slots, kv_heads, _, dim = keys.shape
        rows = query[0, :, group.rows] if group.slot_rows is None else query[0].index_select(1, group.slot_rows)
        folded = rows.transpose(0, 1).reshape(slots, kv_heads, -1, dim)
        mask = _narrow(group, options.sliding_window, query.dtype)
        if options.needs_eager:
            output = _eager(folded, keys, values, mask, options, heads_folded=True)
        elif group.num_shared_tokens and options.sliding_window is None and can_attend_in_parts(folded, values):
            output = _attend_to_shared(folded, keys, values, mask, group.num_shared_tokens, scale=options.scale)
        else:
            outputs = [
                _attend_to_piece(folded[piece], some_keys, some_values, None if mask is None else mask[piece], options)
                for piece, some_keys, some_values in self._copies.pieces(keys, values)
            ]
            output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        output = output.reshape(slots, query.shape[1], values.shape[3])
        return output if group.row_slots is None else output.index_select(0, group.row_slots)

    def _prefill(  # noqa: PLR0913
        self,
        layer: int,
        chunk: PrefillChunk,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
    ) -> torch.Tensor:
        assert self.cache is not None
        rows = query[:, :, chunk.rows]
        window = options.sliding_window
        is_plain = not options.needs_eager and (window is None or chunk.end <= window)
        if is_plain and chunk.begin == 0:
            # The same call as in `model.generate`, and so the same rounding.
            keys, values = key[:, :, chunk.rows], value[:, :, chunk.rows]
            output = attend(rows, keys, values, is_causal=rows.shape[2] > 1, scale=options.scale)
            return output[0].transpose(0, 1)
        keys, values = self.cache.read(layer, chunk.slot, chunk.slot + 1, chunk.end)
        if is_plain and can_attend_in_parts(rows, values):
            begin = chunk.begin  # all tokens see the keys before it, so no mask of [tokens, end] is needed
            earlier = attend_to_part(rows, keys[:, :, :begin], values[:, :, :begin], scale=options.scale)
            own = attend_to_part(rows, keys[:, :, begin:], values[:, :, begin:], scale=options.scale, is_causal=True)
            return merge_attention(earlier, own)[0].transpose(0, 1)
        mask = self._prefill_mask(chunk, window, query)
        if options.needs_eager:
            output = _eager(rows, keys, values, mask, options, heads_folded=False)
        else:
            output = attend(rows, keys, values, mask=mask, scale=options.scale)
        return output[0].transpose(0, 1)

    def _prefill_mask(self, chunk: PrefillChunk, window: int | None, query: torch.Tensor) -> torch.Tensor:
        assert self.batch is not None
        masks, key = self.batch.prefill_masks, (chunk.slot, window)
        if key not in masks:
            masks[key] = _causal_mask(chunk, window, query.dtype, query.device)
        return masks[key]


def _read_options(
    module: torch.nn.Module, attention_mask: torch.Tensor | None, kwargs: dict[str, Any]
) -> AttentionOptions:
    tensors = [name for name, value in kwargs.items() if isinstance(value, torch.Tensor)]
    unknown = [name for name in tensors if name not in _KNOWN_KWARGS]
    if attention_mask is not None or unknown or kwargs.get("is_causal") is False:
        raise UnsupportedAttentionError(f"attention with {unknown or 'its own mask'}")
    if getattr(module, "is_causal", True) is False:
        raise UnsupportedAttentionError("attention that is not causal")
    return AttentionOptions(
        scale=kwargs.get("scaling"),
        sliding_window=kwargs.get("sliding_window"),
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
    )


def _attend_to_shared(  # noqa: PLR0913
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    num_shared: int,
    *,
    scale: float | None,
) -> torch.Tensor:
    """Like `attend`, but reads the first `num_shared` keys, which all slots share, only once."""
    slots, kv_heads, rows, dim = query.shape
    folded = query.transpose(0, 1).reshape(1, kv_heads, slots * rows, dim)
    shared = attend_to_part(folded, keys[:1, :, :num_shared], values[:1, :, :num_shared], scale=scale)
    by_slot = AttentionPart(
        shared.output.view(kv_heads, slots, rows, dim).transpose(0, 1),
        shared.log_sum_exp.view(kv_heads, slots, rows).transpose(0, 1),
    )
    own_mask = None if mask is None else mask[..., num_shared:]
    own = attend_to_part(query, keys[:, :, num_shared:], values[:, :, num_shared:], mask=own_mask, scale=scale)
    return merge_attention(by_slot, own)


def _attend_to_piece(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    options: AttentionOptions,
) -> torch.Tensor:
    """Computes the attention of some slots of a group."""
    if mask is None and (num_parts := _count_parts(query, keys, values)) > 1:
        return attend_in_parts(query, keys, values, scale=options.scale, num_parts=num_parts)
    return attend(query, keys, values, mask=mask, scale=options.scale)


def _count_parts(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> int:
    """Into how many parts one sequence's keys are split, so that all threads read equally many keys."""
    slots, kv_heads, length, _ = keys.shape
    num_parts = length // _MIN_PART_TOKENS
    if slots > 1 or num_parts < 2 or not can_attend_in_parts(query, values):
        return 1
    num_threads = torch.get_num_threads()
    return num_parts - num_parts % min(num_parts, num_threads // math.gcd(num_threads, kv_heads))


def _narrow(group: DecodeGroup, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
    """The group's mask, cut to a sliding window of `window` keys."""
    if window is None or group.length <= window:
        return group.mask
    positions = torch.arange(group.length, device=group.lengths.device)[None, :]
    lengths = group.lengths[:, None]
    visible = (positions < lengths) & (positions >= lengths - window)
    return additive_mask(visible, dtype)[:, None, None, :]


def _causal_mask(chunk: PrefillChunk, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An additive mask [1, 1, tokens, end]. A token attends to itself and to earlier tokens in the window."""
    rows = torch.arange(chunk.begin, chunk.end, device=device)[:, None]
    columns = torch.arange(chunk.end, device=device)[None, :]
    visible = columns <= rows
    if window is not None:
        visible &= columns > rows - window
    return additive_mask(visible, dtype)[None, None]


def _eager(  # noqa: PLR0913
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    options: AttentionOptions,
    *,
    heads_folded: bool,
) -> torch.Tensor:
    """Attention by plain matrix products, for soft caps (Gemma 2) and sinks (gpt-oss)."""
    if not heads_folded:
        keys, values = repeat_heads(keys, query.shape[1]), repeat_heads(values, query.shape[1])
    scale = options.scale if options.scale is not None else query.shape[-1] ** -0.5
    scores = torch.matmul(query, keys.transpose(2, 3)) * scale
    if options.softcap is not None:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    if mask is not None:
        scores = scores + mask
    if options.sinks is None:
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32)
    else:
        weights = _softmax_with_sinks(scores, options.sinks)
    return torch.matmul(weights.to(query.dtype), values)


def _softmax_with_sinks(scores: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """Softmax over keys and a sink, without the sink's weight. `scores`: [n, kv_heads, queries, keys]."""
    n, heads, queries, _ = scores.shape
    per_row = sinks.view(1, -1, 1, 1) if sinks.numel() == heads else sinks.view(1, heads, -1, 1)
    column = per_row.expand(n, heads, queries, 1).to(scores.dtype)
    with_sinks = torch.cat([scores, column], dim=-1)
    return torch.softmax(with_sinks, dim=-1, dtype=torch.float32)[..., :-1]
