"""How large the KV cache is: slots for `--max-num-seqs`, tokens for the memory there is."""

import logging
from dataclasses import dataclass

import torch

from server.config import EngineConfig
from server.engine.kv_cache import LayerShape
from server.errors import EngineStartError
from server.memory import available_bytes

logger = logging.getLogger(__name__)

_CPU_SHARE = 0.4
"""Of the memory that is free once the model is loaded; the rest is for activations, logits and the API process."""
_GIB = 1 << 30


@dataclass(frozen=True)
class CacheSize:
    """The KV cache's dimensions."""

    num_slots: int
    slot_len: int
    num_tokens: int
    """Tokens that may be held at once; less than `num_slots * slot_len` where pages are committed on use."""
    num_bytes: int


def size_cache(
    shapes: dict[int, LayerShape], config: EngineConfig, *, max_model_len: int, dtype: torch.dtype, device: torch.device
) -> CacheSize:
    """Fits the cache into memory; shortens the sequences only where the user did not fix their length.

    Raises:
        EngineStartError: not one sequence of the wanted length fits.
    """
    bytes_per_token = sum(s.num_elements for s in shapes.values()) * dtype.itemsize
    budget = config.kv_cache_memory_bytes or _free_bytes(config, device)
    num_tokens = budget // bytes_per_token
    if num_tokens < max_model_len:
        if config.max_model_len is not None or num_tokens < 1:
            shorter = f"lower --max-model-len to {num_tokens} or " if num_tokens > 1 else ""
            raise EngineStartError(
                f"a sequence of {max_model_len} tokens needs {_gib(max_model_len * bytes_per_token)} of KV cache "
                f"and {_gib(budget)} are free: {shorter}raise --kv-cache-memory-bytes"
            )
        logger.warning("max_model_len lowered from %d to %d: that is what memory allows", max_model_len, num_tokens)
        max_model_len = num_tokens
    num_slots = config.max_num_seqs
    if device.type != "cpu":
        num_slots = min(num_slots, num_tokens // max_model_len)
        num_tokens = num_slots * max_model_len
    num_tokens = min(num_tokens, num_slots * max_model_len)
    return CacheSize(num_slots, max_model_len, num_tokens, num_tokens * bytes_per_token)


def _free_bytes(config: EngineConfig, device: torch.device) -> int:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return max(int(free - total * (1 - config.gpu_memory_utilization)), 0)
    return int(available_bytes() * _CPU_SHARE)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.3g} GiB"
