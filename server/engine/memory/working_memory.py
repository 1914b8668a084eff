"""Estimates the memory of the largest step's tensors on a GPU from the model's shape."""

from typing import Any, NamedTuple

import torch

_HIDDEN_COPIES = 12
"""Rows of hidden size in a layer at once: residual, norms in float32, query, key, value, output."""
_MLP_COPIES = 4
_LOGIT_BYTES = 32
"""Per sequence and vocabulary entry: logits, their float32 copy, weights, and cumulative sums in float64."""


class WorkingMemory(NamedTuple):
    """Bytes of the largest step: a fixed part, and one that grows with the longest sequence."""

    num_bytes: int
    bytes_per_position: int


NO_WORKING_MEMORY = WorkingMemory(0, 0)


def estimate_working_memory(
    model_config: Any, *, num_tokens: int, num_sequences: int, dtype: torch.dtype
) -> WorkingMemory:
    """For steps of `num_tokens`; per position of a longer prompt, its mask and its keys for every head."""
    text = model_config.get_text_config(decoder=True)
    hidden = text.hidden_size
    inner = getattr(text, "intermediate_size", None)
    inner = inner if isinstance(inner, int) else 4 * hidden
    heads = getattr(text, "num_attention_heads", None) or 1
    head_dim = getattr(text, "head_dim", None) or hidden // heads
    activations = num_tokens * (_HIDDEN_COPIES * hidden + _MLP_COPIES * inner) * dtype.itemsize
    logits = num_sequences * text.vocab_size * _LOGIT_BYTES
    mask = num_tokens * (2 * dtype.itemsize + 1)
    repeated = 2 * heads * head_dim * dtype.itemsize
    return WorkingMemory(activations + logits, mask + repeated)
