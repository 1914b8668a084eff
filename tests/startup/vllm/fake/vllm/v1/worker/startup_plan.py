"""Names what the memory of a start depends on."""

from typing import Any


def compute_plan_fingerprint(vllm_config: Any, rank: int, world_size: int) -> str:
    return f"{rank} of {world_size}"
