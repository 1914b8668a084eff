"""The platform that vLLM was built for."""

import os

from vllm._version import __version__

IMPORTED_IN = os.getpid()


def is_cpu() -> bool:
    return "cpu" in __version__


def worker_module() -> str:
    return "vllm.v1.worker.cpu_worker" if is_cpu() else "vllm.v1.worker.gpu_worker"


def prepare_environment() -> None:
    """The CPU platform sets `spawn`, and makes torch compile in the worker's own process."""
    if is_cpu():
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
