"""Reads the processors that this process may use, and the times of processors and threads from the kernel.

A thread without a processor waits for another process, or for the next period of a cgroup's quota. /proc/stat
counts the time that a hypervisor takes. A thread's own times do not contain that time.
"""

import os
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import NamedTuple

from base.machine.cgroups import PROC, Cgroup, own_cgroups, read_lines

_NS_PER_S = 1e9
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_IDLE, _IOWAIT, _STEAL = 3, 4, 7
"""Columns of a processor's line in /proc/stat."""
_NUM_COLUMNS = 8
"""The number of columns that are read. Later columns repeat time of these columns."""


def affinity_count() -> int:
    """The number of processors on which this process may run."""
    return len(os.sched_getaffinity(0))


def usable_count(proc: Path = PROC) -> int:
    """The number of processors that this process may use fully, at least 1. A quota of 1.5 counts as 2.

    More threads would use up the quota early in each period, and then all of them would wait for the next
    period.
    """
    quotas = [quota for cgroup in own_cgroups("cpu", proc) for quota in _quota(cgroup)]
    return max(1, min([affinity_count(), *map(ceil, quotas)]))


class ThreadTime(NamedTuple):
    """The times of a thread since its start, in nanoseconds."""

    running: int
    waiting: int


class ProcessorTime(NamedTuple):
    """Totals at one moment. Only their differences between two moments have a meaning."""

    threads: dict[str, ThreadTime]
    """Thread id -> times. Empty if the kernel does not count these times."""
    num_processors: int
    """Processors that this process may use. 0 if unknown. The next fields are sums over them."""
    idle_s: float
    busy_s: float
    stolen_s: float
    """The time in which processors of this virtual machine had work but the host ran something else."""

    def since(self, earlier: "ProcessorTime") -> "ProcessorUse":
        """The use of processors since `earlier`. Threads that began or ended meanwhile do not count."""
        pairs = [(now, earlier.threads[i]) for i, now in self.threads.items() if i in earlier.threads]
        running_s = sum(now.running - before.running for now, before in pairs) / _NS_PER_S
        wanted_s = running_s + sum(now.waiting - before.waiting for now, before in pairs) / _NS_PER_S
        idle_s = max(0.0, self.idle_s - earlier.idle_s)
        busy_s = max(0.0, self.busy_s - earlier.busy_s)
        stolen_s = max(0.0, self.stolen_s - earlier.stolen_s)
        others_s = max(0.0, busy_s - running_s) + stolen_s
        ran = running_s / wanted_s if wanted_s > 0 else 1.0
        kept = busy_s / (busy_s + stolen_s) if busy_s + stolen_s > 0 else 1.0
        total_s = idle_s + busy_s + stolen_s
        num_left = self.num_processors * (1 - others_s / total_s) if total_s else 0.0
        return ProcessorUse(num_left=num_left, lost_share=1 - ran * kept)


class ProcessorUse(NamedTuple):
    """The use of processors between two moments."""

    num_left: float
    """The average number of processors that other processes have left free. 0 if unknown."""
    lost_share: float
    """The share (0 to 1) of the time in which this process's threads were ready to run, but did not run."""


def read_processor_time(proc: Path = PROC) -> ProcessorTime:
    """Reads the totals. Takes about 0.3 ms for two threads on four processors."""
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


def _quota(cgroup: Cgroup) -> Iterator[float]:
    """Yields the quota as a number of processors. Yields nothing if the cgroup has no limit."""
    if cgroup.version == 2:
        fields = " ".join(read_lines(cgroup.folder / "cpu.max")).split()
    else:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        fields = [line for name in names for line in read_lines(cgroup.folder / name)]
    if len(fields) == 2 and all(field.isdigit() for field in fields):
        quota, period = map(int, fields)
        if period:
            yield quota / period
