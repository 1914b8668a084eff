"""Detects whether this process has initialized a GPU's driver. If so, its forks cannot use the GPU."""

import ctypes
import os
from contextlib import suppress
from functools import cache
from typing import Final, Literal, TypeAlias

Driver: TypeAlias = Literal["CUDA", "ROCm", "Level Zero"]

_CUDA: Final = "libcuda.so.1"
_LEVEL_ZERO: Final = "libze_loader.so.1"
_OF_AMD: Final = "/dev/kfd"
_OF_INTEL: Final = "/dev/dri"
_DEVICES: Final = ("/dev/nvidiactl", "/dev/dxg", _OF_AMD, _OF_INTEL)
_OPEN_FILES: Final = "/proc/self/fd"
_SUCCESS: Final = 0


@cache
def has_device(path: str) -> bool:
    """Whether the kernel has this device. The first result is cached."""
    return os.path.exists(path)  # noqa: PTH110 - as the other calls of os here


def may_have_gpu() -> bool:
    """Whether the kernel has a device of a GPU. The GPU may be unusable."""
    return any(map(has_device, _DEVICES))


def initialized_driver() -> Driver | None:
    """The GPU driver that this process has initialized. None if forks of this process can use the GPUs.

    Takes some microseconds and initializes nothing. CUDA's `cuDeviceGetCount` fails with
    CUDA_ERROR_NOT_INITIALIZED until `cuInit` has been called (CUDA driver API, "Initialization"). The drivers
    of AMD and Intel are in use once their device files are open.
    """
    handle = _loaded(_CUDA)
    if handle is not None and _cuda(handle).cuDeviceGetCount(ctypes.byref(ctypes.c_int())) == _SUCCESS:
        return "CUDA"
    if has_device(_OF_AMD) and _has_open(_OF_AMD):
        return "ROCm"
    if has_device(_OF_INTEL) and _loaded(_LEVEL_ZERO) is not None and _has_open(_OF_INTEL):
        return "Level Zero"
    return None


def _loaded(library: str) -> int | None:
    """The handle of a library that this process has already loaded. None if it is not loaded."""
    with suppress(OSError):
        return int(ctypes._dlopen(library, os.RTLD_NOLOAD | os.RTLD_LAZY))  # type: ignore[attr-defined]
    return None


@cache
def _cuda(handle: int) -> ctypes.CDLL:
    return ctypes.CDLL(_CUDA, handle=handle)


def _has_open(device: str) -> bool:
    """Whether this process has an open file whose path begins with `device`."""
    for number in os.listdir(_OPEN_FILES):  # noqa: PTH208
        with suppress(OSError):
            if os.readlink(f"{_OPEN_FILES}/{number}").startswith(device):  # noqa: PTH115
                return True
    return False
