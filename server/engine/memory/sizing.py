"""Computes the size of the KV cache. `--max-num-seqs` limits the slots, and free memory limits the tokens."""

import logging
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from base.errors import EngineMemoryError
from base.machine.memory import available_bytes
from server.engine.memory.kv_cache import LayerShape
from server.terms.config import EngineConfig

logger = logging.getLogger(__name__)

_CPU_SHARE = 0.4
"""The cache's share of the memory that is free after loading. The rest is for activations, logits and the
API process."""
PREFIX_SHARE = 0.25
"""The share of the KV cache's tokens that ended sequences may hold."""
_GIB = 1 << 30
_HIDDEN_COPIES = 12
"""Rows of hidden size that a layer needs at once: residual, float32 norms, query, key, value, output."""
_MLP_COPIES = 4
_LOGIT_BYTES = 32
"""Bytes per sequence and vocabulary entry: logits, a float32 copy, weights, float64 cumulative sums."""


@dataclass(frozen=True)
class CacheSize:
    """The dimensions of the KV cache."""

    num_slots: int
    slot_len: int
    num_tokens: int
    """The most tokens held at once, which may be below `num_slots * slot_len` (pages committed on use)."""
    num_bytes: int


class WorkingMemory(NamedTuple):
    """The bytes of the largest step: a fixed part, and a part that grows with the longest sequence."""

    num_bytes: int
    bytes_per_position: int


NO_WORKING_MEMORY = WorkingMemory(0, 0)


def estimate_working_memory(
    model_config: Any, *, num_tokens: int, num_sequences: int, dtype: torch.dtype
) -> WorkingMemory:
    """Estimates a step's memory. Each position of the longest sequence adds mask, keys and values."""
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


def size_cache(  # noqa: PLR0913
    shapes: dict[int, LayerShape],
    config: EngineConfig,
    *,
    max_model_len: int,
    dtype: torch.dtype,
    device: torch.device,
    working: WorkingMemory = NO_WORKING_MEMORY,
) -> CacheSize:
    """Fits the cache into memory. Lowers the maximum length of sequences, unless the user has set it.

    `working` is the memory that a GPU needs for the largest step.

    Raises:
        EngineMemoryError: not even one sequence of the required length fits.
    """
    bytes_per_token = sum(s.num_elements for s in shapes.values()) * dtype.itemsize
    held_bytes = bytes_per_token
    if device.type != "cpu" and config.enable_prefix_caching:
        held_bytes = math.ceil(bytes_per_token * (1 + PREFIX_SHARE))  # on a GPU, cached prefixes are copies
    if device.type == "cpu" or config.kv_cache_memory_bytes:
        working = NO_WORKING_MEMORY
    budget = config.kv_cache_memory_bytes or max(_free_bytes(config, device) - working.num_bytes, 0)
    longest = budget // (held_bytes + working.bytes_per_position)
    if longest < max_model_len:
        if config.max_model_len is not None or longest < 1:
            raise EngineMemoryError(_describe_lack(max_model_len, held_bytes, budget, longest, config, device))
        logger.warning("max_model_len lowered from %d to %d: no more fits into memory", max_model_len, longest)
        max_model_len = longest
    num_tokens = (budget - working.bytes_per_position * max_model_len) // held_bytes
    num_slots = config.max_num_seqs
    if device.type != "cpu":
        num_slots = _count_slots(num_slots, num_tokens // max_model_len, max_model_len)
    num_tokens = min(num_tokens, num_slots * max_model_len)
    return CacheSize(num_slots, max_model_len, num_tokens, num_tokens * bytes_per_token)


def _count_slots(wanted: int, possible: int, max_model_len: int) -> int:
    if possible < wanted:
        logger.warning(
            "the GPU's memory holds %d sequences of %d tokens at once instead of %d, and further ones wait: a lower "
            "--max-model-len makes room for more",
            possible,
            max_model_len,
            wanted,
        )
    return min(possible, wanted)


def _free_bytes(config: EngineConfig, device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        return max(int(free - total * (1 - config.gpu_memory_utilization)), 0)
    return int(available_bytes() * _CPU_SHARE)


def _describe_lack(  # noqa: PLR0913
    max_model_len: int, held_bytes: int, budget: int, longest: int, config: EngineConfig, device: torch.device
) -> str:
    steps = [f"lower --max-model-len to {longest}"] if longest > 1 else []
    if device.type == "cuda" and config.kv_cache_memory_bytes is None:
        steps.append(f"raise --gpu-memory-utilization ({config.gpu_memory_utilization:g})")
    else:
        steps.append("raise --kv-cache-memory-bytes")
    return (
        f"a sequence of {max_model_len} tokens needs {_gib(max_model_len * held_bytes)} of KV cache "
        f"and {_gib(budget)} are free: {' or '.join(steps)}"
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.3g} GiB"
