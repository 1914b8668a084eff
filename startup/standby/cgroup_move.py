"""Moves this process into the cgroup of another one, or tells whether both cgroups have the same limits."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from server.machine import cgroups

_DEFAULTS: Final = {
    "memory.max": "max",
    "memory.high": "max",
    "memory.swap.max": "max",
    "memory.zswap.max": "max",
    "memory.low": "0",
    "memory.min": "0",
    "memory.oom.group": "0",
    "cpu.max": "max 100000",
    "cpu.weight": "100",
    "cpu.idle": "0",
    "cpu.uclamp.min": "0.00",
    "cpu.uclamp.max": "max",
    "io.max": "",
    "io.weight": "default 100",
    "io.latency": "",
    "pids.max": "max",
    "hugetlb.2MB.max": "max",
    "hugetlb.1GB.max": "max",
    # Version 1
    "memory.limit_in_bytes": "9223372036854771712",
    "memory.memsw.limit_in_bytes": "9223372036854771712",
    "memory.soft_limit_in_bytes": "9223372036854771712",
    "memory.swappiness": "60",
    "cpu.cfs_quota_us": "-1",
    "cpu.cfs_period_us": "100000",
    "cpu.shares": "1024",
    "blkio.throttle.read_bps_device": "",
    "blkio.throttle.write_bps_device": "",
    "blkio.throttle.read_iops_device": "",
    "blkio.throttle.write_iops_device": "",
    "devices.list": "a *:* rwm",
    "net_cls.classid": "0",
}
"""Limits and shares of a cgroup with the values of one that has none."""

_OF_NEAREST: Final = (
    "cpuset.cpus.effective",
    "cpuset.mems.effective",
    "cpuset.effective_cpus",
    "cpuset.effective_mems",
)
"""Files in which the kernel has already combined the ancestors' limits."""


def enter(wanted: str) -> None:
    """Makes /proc/self/cgroup equal to the text, or leaves cgroups whose limits are the same.

    Raises:
        OSError: neither was possible.
    """
    theirs, own = _paths(wanted), _paths("\n".join(cgroups.read_lines(cgroups.PROC / "self" / "cgroup")))
    if theirs.keys() != own.keys():
        raise OSError("other cgroup hierarchies")
    for controllers, path in theirs.items():
        if path != own[controllers]:
            _enter(controllers, path, own[controllers])


def _paths(text: str) -> dict[str, str]:
    """The path in each hierarchy, by its list of controllers: empty for version 2."""
    lines = (line.split(":", 2) for line in text.splitlines())
    return {line[1]: line[2] for line in lines if len(line) == 3}


def _enter(controllers: str, path: str, own_path: str) -> None:
    mount = next((mount for mount in cgroups.mounts() if mount.is_of(controllers)), None)
    folder, own_folder = (mount.folder_of(path), mount.folder_of(own_path)) if mount else (None, None)
    if mount is None or folder is None or own_folder is None:
        raise OSError(f"{path} is not visible in a mounted cgroup file system")
    try:
        (folder / "cgroup.procs").write_text("0")
    except OSError as error:
        differing = next(differences(folder, own_folder, mount.point), None)
        if differing is not None:
            raise OSError(f"{error.strerror}, and {differing} is not the same") from error


def differences(folder: Path, own_folder: Path, top: Path) -> Iterator[str]:
    """Names of limits that differ between the cgroups; their common ancestors' limits apply to both."""
    ways = [[place, *place.parents] for place in (folder, own_folder)]
    apart = [
        [place for place in way if place.is_relative_to(top) and place not in other]
        for way, other in zip(ways, reversed(ways), strict=True)
    ]
    for name, default in _DEFAULTS.items():
        first, second = ({_value(place / name, default) for place in way} - {default} for way in apart)
        if first != second:
            yield name
    for name in _OF_NEAREST:
        nearest = {next(filter(None, (_value(place / name, "") for place in way)), "") for way in ways}
        if len(nearest) > 1:
            yield name


def _value(path: Path, default: str) -> str:
    return "\n".join(cgroups.read_lines(path)).strip() if path.exists() else default
