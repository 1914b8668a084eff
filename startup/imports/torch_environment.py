"""Sets variables that torch reads when it is loaded, and finds out whether torch will use a GPU.

This module imports no third-party package.
"""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from envs import environment
from envs.registry import env

_GPU_DEVICES: Final = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
_SPIN_COUNT: Final = "10000"
"""How often torch's threads check for work after a parallel region, before they sleep.

If the processor's pause instruction takes 10 ns, the checks take 0.1 ms. This time is longer than the gap
between two kernels, and shorter than a time slice.

With libgomp's default, a thread spins so long that its descheduled partner gets no core. With one other busy
process on 2 cores, an engine then generates 12 tokens/s instead of 150. Without any spinning
(OMP_WAIT_POLICY=passive), an engine on an idle machine loses a third of its speed.
"""

_KERNELS: Final = "128"
"""How many compiled kernels oneDNN keeps in its cache. torch uses oneDNN to multiply matrices on a CPU.

Kernels are compiled for each shape, four or five for each number of tokens in a step. By default, 1024
kernels are cached twice: by oneDNN and by ideep, torch's layer above it. With half a megabyte per kernel, the
caches slowly grow to half a gigabyte beside a model of 135M parameters. This growth looks like a memory leak.

The kernels of frequent steps (one token for each running sequence) fit into a cache of 128. A step with a
number of tokens that was not used recently compiles its kernel again, in 0.6 ms.
"""


def set_torch_variables() -> None:
    """Sets variables for this process and its children, unless the user has set them.

    Call this function before torch is loaded. It makes torch detect GPUs through the driver's management
    library (NVML). Otherwise a library that looks for a GPU while it is imported would initialise CUDA, and
    forked children could not use the GPU.
    """
    if env.PYTORCH_NVML_BASED_CUDA_CHECK.raw is None:
        os.environ[env.PYTORCH_NVML_BASED_CUDA_CHECK.name] = "1"
    if env.GOMP_SPINCOUNT.raw is None and env.OMP_WAIT_POLICY.raw is None:
        os.environ[env.GOMP_SPINCOUNT.name] = _SPIN_COUNT
    if env.ONEDNN_PRIMITIVE_CACHE_CAPACITY.raw is None and env.DNNL_PRIMITIVE_CACHE_CAPACITY.raw is None:
        os.environ[env.ONEDNN_PRIMITIVE_CACHE_CAPACITY.name] = _KERNELS
    if env.LRU_CACHE_CAPACITY.raw is None:
        os.environ[env.LRU_CACHE_CAPACITY.name] = _KERNELS


def has_gpu() -> bool:
    """Whether a driver provides a GPU on this machine, even if the GPU is hidden from this process."""
    return any(device.exists() for device in _GPU_DEVICES)


def expects_gpu() -> bool:
    """Whether the engine will probably use a GPU: one exists, is not hidden, and torch is built for it."""
    if not has_gpu():
        return False
    return not hides_gpus(environment.snapshot()) and _is_torch_built_for_gpus()


def hides_gpus(environment: Mapping[str, str]) -> bool:
    """Whether these environment variables hide all GPUs."""
    value = environment.get(env.CUDA_VISIBLE_DEVICES.name)
    return value is not None and value.strip().lower() in {"", "-1", "none", "void"}


def _is_torch_built_for_gpus() -> bool:
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    return (Path(spec.origin).parent / "lib" / "libtorch_cuda.so").exists()
