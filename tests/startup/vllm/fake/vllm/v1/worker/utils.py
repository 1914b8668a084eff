"""Allocates a KV cache. Only this module of the package imports torch."""

from typing import Any

import torch


def allocate_kv_cache(buf_size: int, device: Any) -> torch.Tensor:
    buf = torch.zeros(buf_size, dtype=torch.int8, device=device)
    return buf  # noqa: RET504 - as in vLLM
