"""The platform that vLLM was built for."""

from vllm._version import __version__
from vllm.platforms import cpu

current_platform = None


def is_cpu() -> bool:
    return "cpu" in __version__


def worker_module() -> str:
    return "vllm.v1.worker.cpu_worker" if is_cpu() else "vllm.v1.worker.gpu_worker"


def prepare_environment() -> None:
    if is_cpu():
        cpu.prepare_environment()
