"""The number of processors this process may use: its affinity or a cgroup's quota, whichever is less."""

import os
from collections.abc import Iterator
from math import ceil
from pathlib import Path

from server.machine.cgroups import PROC, Cgroup, own_cgroups, read_lines


def affinity_count() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0))


def usable_count(proc: Path = PROC) -> int:
    """The number of processors this process may use fully, at least 1; a quota of 1.5 counts as 2.

    More threads than that use up the quota early in each period, and then all of them wait until it ends.
    """
    quotas = [quota for cgroup in own_cgroups("cpu", proc) for quota in _quota(cgroup)]
    return max(1, min([affinity_count(), *map(ceil, quotas)]))


def _quota(cgroup: Cgroup) -> Iterator[float]:
    """The quota in processors; yields nothing if there is no limit."""
    if cgroup.version == 2:
        fields = " ".join(read_lines(cgroup.folder / "cpu.max")).split()
    else:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        fields = [line for name in names for line in read_lines(cgroup.folder / name)]
    if len(fields) == 2 and all(field.isdigit() for field in fields) and int(fields[1]):
        yield int(fields[0]) / int(fields[1])
