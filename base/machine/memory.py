"""Reads the available memory of the machine and of cgroups, and counts kills because memory ran out.

Standard library only, because the helper process of the prefetch also imports this module.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

from base.machine.cgroups import PROC, own_cgroups, read_lines
from base.wording import format_bytes

_NO_LIMIT: Final = 1 << 60
"""Numbers above this mean no limit. Version 1 of cgroups then writes a number near 2**63."""


_KILLS_FILES: Final[dict[Literal[1, 2], str]] = {1: "memory.oom_control", 2: "memory.events"}
_KILLS_FIELD: Final = "oom_kill"


class MemoryState(NamedTuple):
    """The memory under one limit, in bytes."""

    available_bytes: int
    """The memory that can be allocated without swapping. The kernel evicts clean page cache for it."""
    total_bytes: int
    is_cgroup: bool = False
    """Whether the limit comes from a container or another cgroup instead of the machine."""

    @property
    def owner(self) -> str:
        """The owner of the limit, as messages name it."""
        return "the container" if self.is_cgroup else "the machine"


def read_memory(proc: Path = PROC) -> MemoryState | None:
    """The memory under the tightest limit of this process. None if the system reports no limit."""
    states = [*_machine(proc), *_cgroups(proc)]
    return min(states, key=lambda state: state.available_bytes, default=None)


def available_bytes() -> int:
    """The available bytes under the tightest limit. 0 if the system reports no limit."""
    state = read_memory()
    return state.available_bytes if state else 0


NOT_BY_OOM_KILLER: Final = ", not by the kernel's OOM killer"


class OomWatch:
    """Detects by the cgroup's counter whether the kernel has killed a process because memory ran out.

    Must be created at the start of the watched process, in a process of the same cgroup.
    """

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._num_before = _num_kills(proc)

    @property
    def has_killed(self) -> bool | None:
        """Whether the kernel has killed a process of this cgroup since `__init__`. None without a counter."""
        return None if self._num_before is None else _num_kills(self._proc) != self._num_before

    def describe_kill(self) -> str:
        """The end of a message about a SIGKILL, with the cause and advice."""
        if not self.has_killed:
            return ", as the kernel does when memory runs out" if self.has_killed is None else NOT_BY_OOM_KILLER
        memory = read_memory(self._proc)
        whose = "this container" if memory and memory.is_cgroup else "this machine"
        limit = f" ({format_bytes(memory.total_bytes)})" if memory else ""
        return (
            f": the kernel killed it because the memory of {whose}{limit} ran out. Lower --max-num-seqs, "
            "--max-model-len or --kv-cache-memory-bytes, or provide more memory"
        )


_NAMES: Final[dict[Literal[1, 2], tuple[tuple[str, ...], str, tuple[str, ...]]]] = {
    1: (("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
    2: (("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file")),
}
"""Version of cgroups -> files of the limits, file of the usage, keys of the page cache in memory.stat."""


def _machine(proc: Path) -> Iterator[MemoryState]:
    fields = _numbers(proc / "meminfo")
    if "MemAvailable:" in fields and "MemTotal:" in fields:
        yield MemoryState(fields["MemAvailable:"] << 10, fields["MemTotal:"] << 10)


def _cgroups(proc: Path) -> Iterator[MemoryState]:
    for cgroup in own_cgroups("memory", proc):
        limit_files, usage_file, cache_keys = _NAMES[cgroup.version]
        limits, usage = [_number(cgroup.folder / name) for name in limit_files], _number(cgroup.folder / usage_file)
        limit = min((limit for limit in limits if limit is not None), default=_NO_LIMIT)
        if usage is not None and limit < _NO_LIMIT:
            statistics = _numbers(cgroup.folder / "memory.stat")
            cache = sum(statistics.get(key, 0) for key in cache_keys)
            yield MemoryState(max(limit - usage + cache, 0), limit, is_cgroup=True)


def _number(path: Path) -> int | None:
    text = "".join(read_lines(path))
    return int(text) if text.isdigit() else None


def _numbers(path: Path) -> dict[str, int]:
    words = (line.split() for line in read_lines(path))
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdigit()}


def _num_kills(proc: Path) -> int | None:
    """The number of out-of-memory kills in the cgroup, or else on the machine. None without a counter."""
    for cgroup in own_cgroups("memory", proc):
        if (num := _read_kills(cgroup.folder / _KILLS_FILES[cgroup.version])) is not None:
            return num
    return _read_kills(proc / "vmstat")


def _read_kills(path: Path) -> int | None:
    for line in read_lines(path):
        name, _, number = line.partition(" ")
        if name == _KILLS_FIELD and number.isdigit():
            return int(number)
    return None
