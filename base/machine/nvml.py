"""Lists this machine's GPUs through NVIDIA's management library (NVML), without CUDA and in about 10 ms.

Calls the library's C functions, which are the same in all drivers. vLLM installs nvidia-ml-py for these
calls, but importing this package takes longer than the calls.
"""

import ctypes
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple

_LIBRARIES: Final = ("libnvidia-ml.so.1", "libnvidia-ml.so")
_OK: Final = 0
_TEXT_BYTES: Final = 96
_MAX_PROCESSES: Final = 64
_UNKNOWN_BYTES: Final = (1 << 64) - 1
"""NVML reports this number if it does not know a process's memory, as in a container."""


class GpuProcess(NamedTuple):
    """A process that holds memory of a GPU."""

    pid: int
    used_bytes: int | None
    """The bytes of the GPU's memory that the process holds. None if the driver does not report them."""


class Gpu(NamedTuple):
    """One GPU. `number` is the driver's number of it."""

    number: int
    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    processes: tuple[GpuProcess, ...]
    capability: tuple[int, int] | None = None
    """CUDA's compute capability, major and minor. None if the driver does not report it."""


class GpuState(NamedTuple):
    """The state of NVIDIA's driver and its GPUs."""

    driver: str
    """The driver's version."""
    cuda: tuple[int, int]
    """The newest version of CUDA that the driver supports."""
    gpus: tuple[Gpu, ...]
    problem: str | None = None
    """Why the driver cannot be used. None if it can be used."""


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Process(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


def read_gpus() -> GpuState | None:
    """The state of NVIDIA's driver. None if there is no driver."""
    library = _load()
    if library is None:
        return None
    if (code := library.nvmlInit_v2()) != _OK:
        return GpuState("", (0, 0), (), problem=_error(library, code))
    try:
        return GpuState(_text(library.nvmlSystemGetDriverVersion), _cuda(library), tuple(_gpus(library)))
    finally:
        library.nvmlShutdown()


def keep_driver_open() -> None:
    """Keeps the library initialized, so that later calls of `read_gpus` in this process are faster."""
    if (library := _load()) is not None:
        library.nvmlInit_v2()


def _load() -> ctypes.CDLL | None:
    for name in _LIBRARIES:
        with suppress(OSError):
            return ctypes.CDLL(name)
    return None


def _error(library: ctypes.CDLL, code: int) -> str:
    describe = library.nvmlErrorString
    describe.restype = ctypes.c_char_p
    return (describe(code) or b"").decode(errors="replace") or f"error {code}"


def _cuda(library: ctypes.CDLL) -> tuple[int, int]:
    number = ctypes.c_int()
    if library.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(number)) != _OK:
        return 0, 0
    return number.value // 1000, number.value % 1000 // 10


def _gpus(library: ctypes.CDLL) -> Iterator[Gpu]:
    count = ctypes.c_uint()
    if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != _OK:
        return
    for index in range(count.value):
        handle = ctypes.c_void_p()
        if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) == _OK:
            yield _gpu(library, index, handle)


def _gpu(library: ctypes.CDLL, index: int, handle: ctypes.c_void_p) -> Gpu:
    memory = _Memory()
    library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    return Gpu(
        number=index,
        uuid=_text(library.nvmlDeviceGetUUID, handle),
        name=_text(library.nvmlDeviceGetName, handle),
        total_bytes=memory.total,
        free_bytes=memory.free,
        processes=tuple(_processes(library, handle)),
        capability=_capability(library, handle),
    )


def _capability(library: ctypes.CDLL, handle: ctypes.c_void_p) -> tuple[int, int] | None:
    major, minor = ctypes.c_int(), ctypes.c_int()
    if library.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)) != _OK:
        return None
    return major.value, minor.value


def _processes(library: ctypes.CDLL, handle: ctypes.c_void_p) -> Iterator[GpuProcess]:
    count = ctypes.c_uint(_MAX_PROCESSES)
    found = (_Process * _MAX_PROCESSES)()
    if library.nvmlDeviceGetComputeRunningProcesses_v3(handle, ctypes.byref(count), found) != _OK:
        return
    for process in found[: count.value]:
        yield GpuProcess(process.pid, None if process.used == _UNKNOWN_BYTES else process.used)


def _text(function: Any, *handle: ctypes.c_void_p) -> str:
    text = ctypes.create_string_buffer(_TEXT_BYTES)
    if function(*handle, text, ctypes.c_uint(_TEXT_BYTES)) != _OK:
        return ""
    return text.value.decode(errors="replace")
