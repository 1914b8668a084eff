"""The process properties that `exec` keeps. A forked server must have those of the front process.

The front process is the process that the user has started. Some properties are taken over. If another
property differs, the start is cold. This code runs in the fork while the fork has one thread. It reads the
front process's state from /proc, so that a process in a sandbox cannot claim to be outside of it.

Some properties are not in /proc, so this code does not compare them: the programs of seccomp filters,
Landlock rules, securebits, and the session keyring. But the number of seccomp filters is compared.
"""

import os
import resource
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil  # noqa: TID253 - in the template process, so that its forks need not import it

from base.machine import cgroups
from startup.processes.state import LIMITS, read_fields, read_text, set_limits, status_of

_STATUS: Final = (
    "Uid",
    "Gid",
    "Groups",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "TracerPid",
    "THP_enabled",
    "Cpus_allowed_list",
    "Mems_allowed_list",
    "SigBlk",
)
"""Lines of /proc/PID/status that must be equal."""

_FILES: Final = ("attr/current", "attr/apparmor/current", "loginuid", "coredump_filter")
"""Files of /proc/PID that must be equal."""

_LIMITS_AT_EXEC: Final = ("RLIMIT_STACK", "RLIMIT_AS", "RLIMIT_DATA")
"""Soft limits that cannot be set later.

The C library reads RLIMIT_STACK at `exec`. The others would also count the memory of the template's modules.
"""

_CGROUP_LIMITS: Final = (
    "cpu.idle",
    "cpu.max",
    "cpu.weight",
    "io.max",
    "io.weight",
    "memory.high",
    "memory.low",
    "memory.max",
    "memory.min",
    "memory.swap.max",
)
"""Files with a cgroup's limits, except `pids.max`, which systemd sets for services, but not for sessions."""
_UNLIMITED: Final = frozenset({"", "0", "100", "default 100", "max", "max 100000"})
"""Contents of these files in a cgroup without limits."""

_UNCHANGEABLE: Final = frozenset({signal.SIGKILL, signal.SIGSTOP})


def why_not_equal(pid: int) -> str | None:
    """Names the first property that differs from process `pid` and is not taken over, or returns None."""
    return first_difference(_properties(pid), _properties(os.getpid()))


def first_difference(theirs: Mapping[str, str], own: Mapping[str, str]) -> str | None:
    """Returns a reason that names the first property that differs. None if all properties are equal."""
    for name in {**own, **theirs}:
        there, here = theirs.get(name, ""), own.get(name, "")
        if there != here:
            return f"{name} differs: {_short(there)} instead of the standby's {_short(here)}"
    return None


def take_over(pid: int) -> str | None:
    """Takes over the properties of another process that can be changed.

    Returns the reason why a property cannot be taken over, or None. Each signal gets its default action or is
    ignored, as in an executed program. This includes SIGINT, as in `vllm_cli.__main__`.

    Raises:
        OSError: the process has ended.
    """
    status = status_of(pid)
    os.umask(int(status["Umask"], 8))
    _set_signal_actions(int(status["SigIgn"], 16))
    Path("/proc/self/comm").write_text(read_text(f"/proc/{pid}/comm"))
    with suppress(PermissionError):  # a lower score needs privileges; then the server keeps the standby's
        Path("/proc/self/oom_score_adj").write_text(read_text(f"/proc/{pid}/oom_score_adj"))
    return _enter_cgroup(pid) or set_limits(pid)


def _properties(pid: int) -> dict[str, str]:
    status = status_of(pid)
    spaces = Path(f"/proc/{pid}/ns")
    found = {name: status.get(name, "") for name in _STATUS}
    found |= {f"the {name} namespace": _shown((spaces / name).readlink) for name in os.listdir("/proc/self/ns")}  # noqa: PTH208
    found |= {f"/proc/PID/{name}": read_text(f"/proc/{pid}/{name}") for name in _FILES}
    found |= {f"the soft limit {name}": _shown(_soft_limit, pid, name) for name in _LIMITS_AT_EXEC}
    found["the root directory"] = _shown(_root_directory, pid)
    found["the memory policy"] = "".join(read_text(f"/proc/{pid}/numa_maps").split(" ", 2)[1:2])
    found["the scheduling policy"] = f"{os.sched_getscheduler(pid)} {os.sched_getparam(pid).sched_priority}"
    found["the nice value"] = str(os.getpriority(os.PRIO_PROCESS, pid))
    found["the I/O priority"] = _shown(lambda: psutil.Process(pid).ionice())
    return found


def _shown(read: Callable[..., object], *arguments: object) -> str:
    """What the call returns, as text. Empty if the kernel or a sandbox does not show it to this user."""
    try:
        return str(read(*arguments))
    except (OSError, psutil.Error):
        return ""


def _soft_limit(pid: int, name: str) -> int:
    return resource.prlimit(pid, LIMITS[name])[0]


def _set_signal_actions(ignored: int) -> None:
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - _UNCHANGEABLE:
        action: Any = signal.SIG_IGN if ignored >> (number - 1) & 1 else signal.SIG_DFL
        if signal.getsignal(number) != action:  # handlers of `faulthandler` look like SIG_DFL, and stay
            signal.signal(number, action)


def _enter_cgroup(pid: int) -> str | None:
    """Moves this process into the other process's cgroup. If this fails, equal limits are enough.

    Returns the reason if limits differ or are not visible, or None. With cgroups of version 1, the cgroups of
    all controllers must be the same.
    """
    theirs, own = _cgroups(pid), _cgroups(os.getpid())
    path, own_path = theirs.pop("", ""), own.pop("", "")
    if (reason := first_difference(theirs, own)) is not None:
        return f"the cgroup of {reason}"
    if path == own_path:
        return None
    mount = next((mount for mount in cgroups.mounts() if mount.version == 2), None)
    folder, own_folder = (mount.folder_of(path), mount.folder_of(own_path)) if mount else (None, None)
    if mount is None or folder is None or own_folder is None:
        return f"the cgroup {path} is not visible"
    try:
        (folder / "cgroup.procs").write_text("0")
    except OSError:
        differing = _limits_of(folder, mount.point) ^ _limits_of(own_folder, mount.point)
        if differing:
            return f"the cgroup differs in {min(differing).partition('=')[0]}, and this user may not enter it"
    return None


def _cgroups(pid: int) -> dict[str, str]:
    """The paths of the cgroups with limits, by their controllers. Version 2 has the empty text as its key."""
    lines = [line.split(":", 2) for line in read_text(f"/proc/{pid}/cgroup").split("\n")]
    complete = [line for line in lines if len(line) == 3]
    return {controllers: path for _, controllers, path in complete if not controllers.startswith("name=")}


def _limits_of(folder: Path, top: Path) -> set[str]:
    places = [place for place in (folder, *folder.parents) if place.is_relative_to(top)]
    limits: set[str] = set()
    for place in places:
        for name in _CGROUP_LIMITS:
            value = "\n".join(cgroups.read_lines(place / name))
            if value not in _UNLIMITED:
                limits.add(f"{name}={value}")
    return limits


def _root_directory(pid: int) -> str:
    """Device, inode and mount of a process's root. Two bind mounts of the same folder are different roots."""
    fd = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_CLOEXEC)
    try:
        root = os.fstat(fd)
        mount = read_fields(f"/proc/self/fdinfo/{fd}").get("mnt_id")
        return f"{root.st_dev} {root.st_ino} {mount}"
    finally:
        os.close(fd)


def _short(value: str) -> str:
    text = " ".join(value.split()) or "nothing"
    return text if len(text) <= 80 else f"{text[:77]}..."
