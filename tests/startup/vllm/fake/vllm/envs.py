"""vLLM's variables, read on each access."""

import os


def multiproc_method() -> str:
    method = os.environ.get("VLLM_WORKER_MULTIPROC_METHOD", "fork")
    if method not in ("fork", "spawn"):
        raise ValueError(
            f"Invalid value {method!r} for VLLM_WORKER_MULTIPROC_METHOD. Valid options: ['spawn', 'fork']."
        )
    return method
