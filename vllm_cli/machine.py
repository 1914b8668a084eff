"""Facts about this machine and its installed packages, found without importing them."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from envs.registry import variables
from vllm_cli.version import VERSION

PACKAGES: Final = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "starlette",
    "uvicorn",
    "uvloop",
    "httptools",
    "msgspec",
    "llguidance",
    "click",
    "vllm",
)

_GPU_QUERY: Final = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")


def describe_machine() -> dict[str, Any]:
    """All facts for a bug report; secrets are masked."""
    return {
        "vllm-cli": VERSION,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "cpu": _cpu(),
        "memory": _memory(),
        "gpus": _gpus(),
        "packages": {name: _version_of(name) for name in PACKAGES},
        "environment": {v.name: v.show(v.raw) for v in variables() if v.raw is not None},
    }


def _cpu() -> dict[str, Any]:
    return {"model": cpu_model(), "cores": os.cpu_count(), "usable_cores": len(os.sched_getaffinity(0))}


def cpu_model() -> str:
    """The processor's name, as the kernel reports it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _memory() -> dict[str, int]:
    import psutil

    memory = psutil.virtual_memory()
    return {"total_bytes": memory.total, "available_bytes": memory.available}


def _gpus() -> list[str]:
    try:
        query = subprocess.run(_GPU_QUERY, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in query.stdout.splitlines() if line.strip()]


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
