"""State of the GPU, observed from outside of the processes that use it."""

import subprocess
from functools import cache
from pathlib import Path

import psutil

DEVICE = "cuda"
_MEMORY = ("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits")
_UNIFIED_MEMORY = "/dev/nvidia-uvm"
"""A process that initializes CUDA opens this file; one that only queries the management library does not."""


@cache
def why_no_gpu() -> str | None:
    """The reason why these tests cannot run; None if they can."""
    from startup.engine.torch_environment import expects_gpu

    if not expects_gpu():
        return "there is no GPU, it is hidden by CUDA_VISIBLE_DEVICES, or torch is built without CUDA"
    import torch

    return None if torch.cuda.is_available() else "CUDA cannot use the GPU"


def used_mib() -> int:
    """GPU memory in use by all processes, in MiB."""
    output = subprocess.run(_MEMORY, capture_output=True, text=True, check=True, timeout=60).stdout
    return sum(int(line) for line in output.split())


def uses_cuda(process: psutil.Process) -> bool:
    """Whether the process has initialized CUDA."""
    for entry in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if target.startswith(_UNIFIED_MEMORY):
            return True
    return False
