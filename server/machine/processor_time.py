"""Processor time as the kernel accounts it: of this process's threads, and of the processors they may use.

Threads that are ready to run but have no processor wait: for another process, or for the next period of a
cgroup's quota. Time that a hypervisor takes from all of them is not part of either number; /proc/stat has it.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from server.machine.cgroups import PROC, read_lines

_NS_PER_S = 1e9
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_IDLE, _IOWAIT, _STEAL = 3, 4, 7
"""Columns of a processor in /proc/stat."""
_NUM_COLUMNS = 8
"""The columns after these are parts of earlier ones."""


class ThreadTime(NamedTuple):
    """A thread's times since its start, in nanoseconds."""

    running: int
    waiting: int


class ProcessorTime(NamedTuple):
    """Totals at one moment; the difference of two is of use."""

    threads: dict[str, ThreadTime]
    """Times of each thread by its id; empty if the kernel does not account them."""
    num_processors: int
    """Processors that this process may use; 0 if unknown. The other members are sums of their times."""
    idle_s: float
    busy_s: float
    stolen_s: float
    """Time that processors of this virtual machine wanted, and others on its host used."""

    def since(self, earlier: "ProcessorTime") -> "ProcessorUse":
        """What happened after `earlier`; a thread that began or ended meanwhile does not count."""
        pairs = [(now, earlier.threads[i]) for i, now in self.threads.items() if i in earlier.threads]
        return ProcessorUse(
            running_s=sum(now.running - before.running for now, before in pairs) / _NS_PER_S,
            waiting_s=sum(now.waiting - before.waiting for now, before in pairs) / _NS_PER_S,
            num_processors=self.num_processors,
            idle_s=max(0.0, self.idle_s - earlier.idle_s),
            busy_s=max(0.0, self.busy_s - earlier.busy_s),
            stolen_s=max(0.0, self.stolen_s - earlier.stolen_s),
        )


class ProcessorUse(NamedTuple):
    """Processor time between two moments; running and waiting of all threads of this process, together."""

    running_s: float
    waiting_s: float
    num_processors: int
    idle_s: float
    busy_s: float
    stolen_s: float

    @property
    def num_left(self) -> float:
        """Processors that no other process used, on average; 0 if unknown."""
        others_s = max(0.0, self.busy_s - self.running_s) + self.stolen_s
        total_s = self.idle_s + self.busy_s + self.stolen_s
        return self.num_processors * (1 - others_s / total_s) if total_s else 0.0

    @property
    def lost_share(self) -> float:
        """The share of the time in which a thread wanted to run and did not, 0 to 1."""
        wanted_s = self.running_s + self.waiting_s
        running = self.running_s / wanted_s if wanted_s > 0 else 1.0
        wanted_by_all_s = self.busy_s + self.stolen_s
        stolen = self.stolen_s / wanted_by_all_s if wanted_by_all_s > 0 else 0.0
        return 1 - running * (1 - stolen)


def read_processor_time(proc: Path = PROC) -> ProcessorTime:
    """Reads the totals, in about 0.3 milliseconds for two threads on four processors."""
    rows = list(_usable_processors(proc))
    idle_s = sum(row[_IDLE] + row[_IOWAIT] for row in rows) / _TICKS_PER_S
    stolen_s = sum(row[_STEAL] for row in rows) / _TICKS_PER_S
    busy_s = sum(map(sum, rows)) / _TICKS_PER_S - idle_s - stolen_s
    return ProcessorTime(dict(_threads(proc)), len(rows), idle_s, busy_s, stolen_s)


def _threads(proc: Path) -> Iterator[tuple[str, ThreadTime]]:
    for task in (proc / "self" / "task").iterdir():
        fields = " ".join(read_lines(task / "schedstat")).split()
        if len(fields) >= 2 and fields[0] != "0":
            yield task.name, ThreadTime(int(fields[0]), int(fields[1]))


def _usable_processors(proc: Path) -> Iterator[list[int]]:
    usable = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    for line in read_lines(proc / "stat"):
        name, *fields = line.split()
        if name in usable and len(fields) >= _NUM_COLUMNS:
            yield [int(field) for field in fields[:_NUM_COLUMNS]]
