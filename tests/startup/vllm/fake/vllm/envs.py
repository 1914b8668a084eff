"""vLLM's variables, read on each access."""

import os
from pathlib import Path
from typing import Any

VARIABLES = ("VLLM_WORKER_MULTIPROC_METHOD", "VLLM_LOGGING_CONFIG_PATH", "VLLM_USE_AOT_COMPILE")
VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS = True


def VLLM_LOGGING_CONFIG_PATH() -> str | None:
    return os.environ.get("VLLM_LOGGING_CONFIG_PATH")


def multiproc_method() -> str:
    method = os.environ.get("VLLM_WORKER_MULTIPROC_METHOD", "fork")
    if method not in ("fork", "spawn"):
        raise ValueError(
            f"Invalid value {method!r} for VLLM_WORKER_MULTIPROC_METHOD. Valid options: ['spawn', 'fork']."
        )
    return method


def cache_root() -> Path:
    return Path(os.environ["VLLM_CACHE_ROOT"])


def compile_factors() -> dict[str, Any]:
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith("VLLM_HASHED_")}
