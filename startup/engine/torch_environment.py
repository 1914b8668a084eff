"""Prevents CUDA's initialisation outside the engine process: after it, forked children cannot use CUDA.

Standard library only.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from envs.registry import env

_GPU_DEVICES: Final = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
_NONE: Final = "-1"


def detect_gpus_without_cuda() -> None:
    """Makes torch detect GPUs with the driver's management library (NVML); call before torch is loaded.

    Otherwise a library that checks for a GPU while the forkserver imports it would initialise CUDA there.
    """
    if env.PYTORCH_NVML_BASED_CUDA_CHECK.raw is None:
        os.environ[env.PYTORCH_NVML_BASED_CUDA_CHECK.name] = "1"


def has_gpu() -> bool:
    """Whether a driver provides a GPU device here, hidden or not."""
    return any(device.exists() for device in _GPU_DEVICES)


def expects_gpu() -> bool:
    """Whether the engine will probably use a GPU: one exists, is not hidden, and torch is built for it."""
    if not has_gpu():
        return False
    visible = env.CUDA_VISIBLE_DEVICES
    return not visible.is_empty and visible.raw != _NONE and _is_torch_built_for_gpus()


def _is_torch_built_for_gpus() -> bool:
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    return (Path(spec.origin).parent / "lib" / "libtorch_cuda.so").exists()
