"""The CPU platform sets `spawn`, and makes torch compile in the worker's own process."""

import os

LIBRARIES: list[str] = []
"""Libraries that vLLM's wheel would contain."""


def prepare_environment() -> None:
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    if LIBRARIES:
        os.environ["LD_PRELOAD"] = ":".join(LIBRARIES)
