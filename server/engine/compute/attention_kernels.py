"""Computes attention with torch's fast kernels, in one call or in parts that are merged. Also makes masks.

On a GPU only FlashAttention supports grouped query heads, and it supports no masks. For all other calls
with grouped heads, torch would use its plain kernel, which stores the scores of all heads. These take tens
of gigabytes for a long prompt, so `attend` repeats keys and values instead.
"""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812

_FLASH_DTYPES = (torch.float16, torch.bfloat16)
_FLASH_MAX_DIM = 256
_FLASH_CAPABILITY = (8, 0)
_PIECE_BYTES = 1 << 22
"""The bytes of keys and values that are copied at once. They are small enough for the processor's caches."""
_FEWEST_BYTES, _MOST_SLOT_BYTES = 1 << 18, 1 << 24
"""Fewer bytes of all sequences, or more bytes of each sequence, are not copied."""


def attend(  # noqa: PLR0913
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    scale: float | None,
    mask: torch.Tensor | None = None,
    is_causal: bool = False,
) -> torch.Tensor:
    """Query [n, heads, tokens, dim], keys and values [n, kv_heads, length, dim] -> the query's shape."""
    is_grouped = query.shape[1] != keys.shape[1]
    if is_grouped and not _takes_groups(query, keys, values, mask):
        keys, values = repeat_heads(keys, query.shape[1]), repeat_heads(values, query.shape[1])
        is_grouped = False
    return F.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=is_grouped
    )


class AttentionPart(NamedTuple):
    """The attention to some of the keys, for `merge_attention`."""

    output: torch.Tensor
    """The attention's output, with the query's shape [n, heads, tokens, dim]."""
    log_sum_exp: torch.Tensor
    """The log-sum-exp of each query's scaled scores of these keys, in float32: [n, heads, tokens]."""


def can_attend_in_parts(query: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether `attend_to_part` supports these tensors. Its kernel needs a CPU, and values as wide as keys."""
    return query.device.type == "cpu" and query.shape[-1] == values.shape[-1]


def attend_to_part(  # noqa: PLR0913
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    scale: float | None,
    mask: torch.Tensor | None = None,
    is_causal: bool = False,
) -> AttentionPart:
    """Like `attend`, but for a part of the keys. Each query must see at least one of these keys.

    If all queries see the same keys, query heads that share keys are computed as one head, which is faster.
    """
    folded = query
    if not is_causal and mask is None:
        folded = query.reshape(len(query), keys.shape[1], -1, query.shape[-1])
    output, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        folded, keys, values, is_causal=is_causal, attn_mask=mask, scale=scale
    )
    return AttentionPart(output.reshape(query.shape), log_sum_exp.reshape(query.shape[:-1]))


def attend_in_parts(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, scale: float | None, num_parts: int
) -> torch.Tensor:
    """Like `attend`, for one sequence whose query rows see all keys. Threads divide the keys of a head.

    Without parts, each thread computes whole heads. Two threads would then take as long for three heads as
    for four.
    """
    _, kv_heads, length, dim = keys.shape
    part_len = length // num_parts
    end = num_parts * part_len
    by_part = [t[0, :, :end].reshape(kv_heads, num_parts, part_len, dim).transpose(0, 1) for t in (keys, values)]
    query_of_parts = query.expand(num_parts, -1, -1, -1)
    parts = [attend_to_part(query_of_parts, *by_part, scale=scale)]
    if end < length:
        parts.append(attend_to_part(query, keys[:, :, end:], values[:, :, end:], scale=scale))
    sums = torch.cat([part.log_sum_exp for part in parts])
    shares = torch.softmax(sums, dim=0).unsqueeze(-1)
    outputs = torch.cat([part.output for part in parts])
    return (outputs * shares).sum(dim=0, keepdim=True).to(query.dtype)


def merge_attention(first: AttentionPart, second: AttentionPart) -> torch.Tensor:
    """Returns the attention of the same queries to the keys of both parts together.

    The result is the sum of both outputs, each times its part's share of all softmax weights. A part's
    weights sum to exp(log_sum_exp), so the first part's share is the sigmoid of the difference of both
    `log_sum_exp`. The sum is computed in float32 and rounded once.
    """
    share = torch.sigmoid(first.log_sum_exp - second.log_sum_exp).unsqueeze(-1)
    merged = torch.lerp(second.output.float(), first.output.float(), share)
    return merged.to(first.output.dtype)


class KeyValueCopies:
    """Copies keys and values of decoding sequences into a small buffer, from which attention reads them.

    torch's kernel reads one head after the other, in short rows. If it reads the KV cache from memory, it
    reads 4 GB/s. Copying reads the memory in order, at 20 GB/s. Attention to copies gives the same bits in up
    to a third less time.
    """

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def pieces(self, keys: torch.Tensor, values: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Yields slots with their keys and values, a few slots at a time. A yield overwrites earlier copies.

        Args:
            keys: shape [slots, kv_heads, length, key_dim], a view of the cache.
            values: shape [slots, kv_heads, length, value_dim].
        """
        num_slots, num_bytes = len(keys), keys.nbytes + values.nbytes
        slot_bytes = num_bytes // num_slots
        if keys.device.type != "cpu" or num_bytes < _FEWEST_BYTES or slot_bytes > _MOST_SLOT_BYTES:
            yield slice(num_slots), keys, values
            return
        step = max(1, _PIECE_BYTES // slot_bytes)
        if self._buffer.nbytes < step * slot_bytes:
            self._buffer = torch.empty(max(_PIECE_BYTES, slot_bytes), dtype=torch.uint8)
        for first in range(0, num_slots, step):
            slots = slice(first, min(first + step, num_slots))
            end = keys[slots].nbytes
            yield slots, _copy(keys[slots], self._buffer), _copy(values[slots], self._buffer[end:])


def _copy(cached: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """Copies keys or values to the buffer's beginning. As in the cache, a token's heads are adjacent."""
    slots, heads, length, dim = cached.shape
    copied = buffer[: cached.nbytes].view(cached.dtype).view(slots, length, heads, dim)
    return copied.transpose(1, 2).copy_(cached)


def repeat_heads(tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Repeats each shared head once per query head that uses it, for kernels without grouped heads."""
    return tensor.repeat_interleave(num_heads // tensor.shape[1], 1)


def additive_mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns a mask that is 0 where a key is visible, and minus infinity elsewhere."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, float("-inf"))


def _takes_groups(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None) -> bool:
    if query.device.type != "cuda":
        return True
    return (
        mask is None
        and query.dtype in _FLASH_DTYPES
        and keys.shape[-1] == values.shape[-1] <= _FLASH_MAX_DIM
        and _capability(query.device) >= _FLASH_CAPABILITY
    )


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
