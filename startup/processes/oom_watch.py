"""Tells whether it was the kernel that ended a process, for want of memory: it counts these, by cgroup."""

from pathlib import Path
from typing import Final, Literal

from server.machine.cgroups import PROC, own_cgroups, read_lines
from server.machine.memory import read_memory
from startup.byte_count import format_bytes

_FILES: Final[dict[Literal[1, 2], str]] = {1: "memory.oom_control", 2: "memory.events"}
_FIELD: Final = "oom_kill"


class OomWatch:
    """Made when the process begins that is watched, in a process of the same cgroup."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._num_before = _num_kills(proc)

    def describe_kill(self) -> str:
        """How a message goes on that tells of a SIGKILL."""
        if _num_kills(self._proc) == self._num_before:
            return ", as the kernel does where memory runs out"
        memory = read_memory(self._proc)
        whose = "this container" if memory and memory.is_cgroup else "this machine"
        limit = f" ({format_bytes(memory.total_bytes)})" if memory else ""
        return (
            f": the kernel did it, as the memory of {whose}{limit} had run out; lower --max-num-seqs, --max-model-len "
            "or --kv-cache-memory-bytes, or give it more"
        )


def _num_kills(proc: Path) -> int:
    """So far; of the whole machine where no cgroup counts them, and 0 where nobody does."""
    for cgroup in own_cgroups("memory", proc):
        if (num := _read(cgroup.folder / _FILES[cgroup.version])) is not None:
            return num
    return _read(proc / "vmstat") or 0


def _read(path: Path) -> int | None:
    for line in read_lines(path):
        name, _, number = line.partition(" ")
        if name == _FIELD and number.isdigit():
            return int(number)
    return None
