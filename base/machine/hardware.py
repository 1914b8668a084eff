"""Reads the facts about the hardware on which compiled code depends, in less than a millisecond."""

import platform
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

from base.machine.cgroups import PROC

_CPUINFO_BYTES: Final = 16 << 10
"""The number of bytes that are read from /proc/cpuinfo. The entry of the first processor is enough."""
_GPUS: Final = Path("/proc/driver/nvidia/gpus")
_AMD_GPUS: Final = Path("/sys/class/kfd/kfd/topology/nodes")
"""AMD's folder, which has a folder for each processor and GPU."""
_INSTRUCTION_SETS: Final = re.compile(
    r"abm|adx|aes|amx|avx|bmi|cldemote|clwb|clzero|cmpccxadd|enqcmd|f16c|fma|gfni|kl$|lzcnt|mov|pclmul|pku|popcnt|"
    r"prefetch|raoint|rd(pid|rnd|seed)|sha|sm[34]|sse|ssse|tsxldtrk|uintr|vaes|vpclmul|waitpkg|xop|xsave"
)
"""Matches x86 processor flags for instructions. The other flags differ between kernels on one processor."""


def instruction_sets(proc: Path = PROC) -> tuple[str, ...]:
    """The instruction sets that compilers use, sorted. Empty if the kernel does not list them."""
    names = set((_of_first_processor(proc, "flags", "Features") or "").split())
    is_x86 = platform.machine() in ("x86_64", "i686", "AMD64")
    return tuple(sorted(name for name in names if not is_x86 or _INSTRUCTION_SETS.match(name)))


def cpu_model(proc: Path = PROC) -> str:
    """The name of the processor, as the kernel reports it."""
    return _of_first_processor(proc, "model name") or platform.processor() or platform.machine()


def _of_first_processor(proc: Path, *names: str) -> str | None:
    with suppress(OSError), (proc / "cpuinfo").open("rb") as file:
        for line in file.read(_CPUINFO_BYTES).decode(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in names:
                return value.strip()
    return None


def gpu_kinds(folder: Path = _GPUS, amd: Path = _AMD_GPUS) -> tuple[str, ...]:
    """The names of the GPUs that the driver provides here. Several equal GPUs are listed once.

    If NVIDIA's driver has no folder in /proc, as in WSL, the names come from the driver's library. The name
    of an AMD GPU is its instruction set.
    """
    from base.machine.nvml import read_gpus  # noqa: PLC0415 - ctypes takes longer than all else here

    kinds = {name for path in folder.glob("*/information") if (name := _field(path, "Model:"))}
    if not kinds and (state := read_gpus()) is not None:
        kinds = {gpu.name for gpu in state.gpus}
    versions = (int(_field(path, "gfx_target_version") or 0) for path in amd.glob("*/properties"))
    kinds |= {f"gfx{version // 10_000}{version // 100 % 100:x}{version % 100:x}" for version in versions if version}
    return tuple(sorted(kinds))


def _field(path: Path, name: str) -> str | None:
    """The text after `name` in the line that begins with it."""
    with suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith(name):
                return line.removeprefix(name).strip()
    return None
