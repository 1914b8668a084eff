"""The memory that is still available: the machine's or that of a containing cgroup, whichever is less.

Standard library only; the prefetch's helper process uses it too.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from server.machine.cgroups import PROC, own_cgroups, read_lines

_NO_LIMIT: Final = 1 << 60
"""Version 1 of cgroups writes a number near 2**63 for no limit."""


class MemoryState(NamedTuple):
    """Memory under one limit, in bytes."""

    available_bytes: int
    """Bytes that can be allocated without swapping; clean page cache counts, because the kernel evicts it."""
    total_bytes: int
    is_cgroup: bool = False
    """Whether the limit is a container's (or another cgroup's) instead of the machine's."""


def read_memory(proc: Path = PROC) -> MemoryState | None:
    """The tightest limit that applies to this process; None if the system does not report any."""
    states = [*_machine(proc), *_cgroups(proc)]
    return min(states, key=lambda state: state.available_bytes, default=None)


def available_bytes() -> int:
    """Bytes available under the tightest limit; 0 if the system does not report it."""
    state = read_memory()
    return state.available_bytes if state else 0


class _Version(NamedTuple):
    """File names of one version of cgroups."""

    limits: tuple[str, ...]
    usage: str
    cache_keys: tuple[str, ...]
    """Lines of memory.stat that add up to the page cache."""


_V1: Final = _Version(("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
_V2: Final = _Version(("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file"))


def _machine(proc: Path) -> Iterator[MemoryState]:
    fields = _numbers(proc / "meminfo")
    if "MemAvailable:" in fields and "MemTotal:" in fields:
        yield MemoryState(fields["MemAvailable:"] << 10, fields["MemTotal:"] << 10)


def _cgroups(proc: Path) -> Iterator[MemoryState]:
    for cgroup in own_cgroups("memory", proc):
        yield from _state(_V2 if cgroup.version == 2 else _V1, cgroup.folder)


def _state(version: _Version, folder: Path) -> Iterator[MemoryState]:
    usage = _number(folder / version.usage)
    limits = [limit for name in version.limits if (limit := _number(folder / name)) is not None and limit < _NO_LIMIT]
    if usage is None or not limits:
        return
    statistics = _numbers(folder / "memory.stat")
    cache = sum(statistics.get(key, 0) for key in version.cache_keys)
    yield MemoryState(max(min(limits) - usage + cache, 0), min(limits), is_cgroup=True)


def _number(path: Path) -> int | None:
    text = "".join(read_lines(path))
    return int(text) if text.isdigit() else None


def _numbers(path: Path) -> dict[str, int]:
    words = (line.split() for line in read_lines(path))
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdigit()}
