"""Detects whether the kernel killed a process because memory ran out, by the cgroup's counter of kills."""

from pathlib import Path
from typing import Final, Literal

from server.machine.cgroups import PROC, own_cgroups, read_lines
from server.machine.memory import read_memory
from server.wording import format_bytes

_FILES: Final[dict[Literal[1, 2], str]] = {1: "memory.oom_control", 2: "memory.events"}
_FIELD: Final = "oom_kill"


class OomWatch:
    """Created when the watched process starts, in a process of the same cgroup."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._num_before = _num_kills(proc)

    def describe_kill(self) -> str:
        """The end of a message about a SIGKILL: its cause and advice."""
        if _num_kills(self._proc) == self._num_before:
            return ", as the kernel does when memory runs out"
        memory = read_memory(self._proc)
        whose = "this container" if memory and memory.is_cgroup else "this machine"
        limit = f" ({format_bytes(memory.total_bytes)})" if memory else ""
        return (
            f": the kernel killed it because the memory of {whose}{limit} ran out; lower --max-num-seqs, "
            "--max-model-len or --kv-cache-memory-bytes, or provide more memory"
        )


def _num_kills(proc: Path) -> int:
    """Out-of-memory kills in the cgroup so far; without a cgroup of the whole machine; 0 if not counted."""
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
