"""Reads facts about processes, such as start time and memory, and kills processes. See proc(5)."""

import os
import signal
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

_NS = 1_000_000_000
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_READINGS = 5
KILL_S = 0.5
"""Seconds that killed processes have to end. They first have to free their memory."""
_KILL_POLL_S = 0.002
_TRACKER = b"multiprocessing.resource_tracker"
ENDED = ("Z", "X")
"""The states of a process that has ended, but is not reaped (proc(5))."""


def stat_fields(pid: int | str) -> list[str]:
    """The fields of /proc/PID/stat after the command's name. The first is the state, number 3 in proc(5)."""
    with open(f"/proc/{pid}/stat", errors="replace") as file:  # noqa: PTH123
        return file.read().rpartition(")")[2].split()


def processor_s(stat: Sequence[str], *, with_reaped: bool) -> float:
    """A process's processor time from its `stat_fields`. `with_reaped` adds the time of reaped children."""
    return sum(map(int, stat[11 : 15 if with_reaped else 13])) / _TICKS_PER_S


def is_alive(pid: int) -> bool:
    """Whether the process runs. False for a zombie, which has ended but is not reaped."""
    try:
        return stat_fields(pid)[0] not in ENDED
    except FileNotFoundError:
        return not os.path.exists("/proc/self") and _exists(pid)  # noqa: PTH110
    except (OSError, IndexError):
        return _exists(pid)


def pss_bytes(pid: int) -> int:
    """A process's memory in bytes. Shared pages count in part (proc(5), smaps_rollup). 0 if it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0


def family_pss_bytes() -> int:
    """The memory of this process and its descendants in bytes. Pages that they share count once."""
    return sum(map(pss_bytes, (os.getpid(), *descendants(os.getpid()))))


def process_start_ns(pid: int | str = "self") -> int:
    """The monotonic time in nanoseconds at which the kernel started a process (proc(5)).

    The kernel counts in ticks of 10 ms, so the result may be one tick early. If /proc cannot be read, returns
    the current time.
    """
    now = time.monotonic_ns()
    try:
        return min(now, int(_started_s(pid) * _NS) - _suspended_ns())
    except (OSError, ValueError, AttributeError, IndexError):
        return now


def process_age_s(pid: int | str) -> float | None:
    """Seconds since the start of a process. None if /proc cannot be read."""
    try:
        return time.clock_gettime(time.CLOCK_BOOTTIME) - _started_s(pid)
    except (OSError, ValueError, AttributeError, IndexError):
        return None


def _started_s(pid: int | str) -> float:
    """Seconds from the boot of the machine to the start of the process."""
    return int(stat_fields(pid)[19]) / _TICKS_PER_S


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as err:
        return isinstance(err, PermissionError)
    return True


def _suspended_ns() -> int:
    """How long the machine was suspended. The monotonic clock does not count this time.

    It is the difference of two clocks that are read one after the other. A pause between the readings makes
    the difference too large, never too small, so the smallest of several differences is returned.
    """
    return min(-time.monotonic_ns() + time.clock_gettime_ns(time.CLOCK_BOOTTIME) for _ in range(_READINGS))


class EndWatch:
    """Detects that a process exits: its memory size (proc(5), `statm`) becomes zero then.

    The kernel frees the memory before it closes the process's files and notifies the parent and holders of a
    pidfd. Freeing takes a tenth of a second or more for each GB.
    """

    def __init__(self, pid: int) -> None:
        """Must be called before the process is reaped. Otherwise, or without /proc, no exit is detected."""
        self._fd: int | None = None
        with suppress(OSError):
            self._fd = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)

    def is_exiting(self) -> bool:
        """Whether the process is exiting or has exited. Takes some microseconds."""
        if self._fd is None:
            return False
        try:
            return os.pread(self._fd, 2, 0) == b"0 "
        except ProcessLookupError:  # it has exited and was reaped
            return True

    def close(self) -> None:
        """Stops the detection. May be called again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def descendants(pid: int, but: Collection[int] = ()) -> set[int]:
    """The children of a process, their children and so on, except `but` and the descendants of `but`.

    Processes whose parent has ended are not found.
    """
    found: set[int] = set()
    new = [pid]
    while new:
        new = [child for parent in new for child in child_pids(parent) if child not in found and child not in but]
        found.update(new)
    return found


def kill_descendants(*, spared: Collection[int] = (), mark: str | None = None, timeout_s: float = KILL_S) -> None:
    """Kills the descendants of this process. Returns when they have ended, or after the timeout.

    Args:
        spared: processes that are not killed. Their descendants are not killed either.
        mark: a variable, `NAME=value`. Programs that were started with it are also killed, even if their
            parent has ended.
        timeout_s: seconds.
    """
    known: set[int] = set()
    end_s = time.monotonic() + timeout_s
    while True:
        known |= descendants(os.getpid(), but=spared)
        if mark is not None:
            known |= {pid for pid in marked_pids(f"{mark}\0") if pid != os.getpid() and not _is_tracker(pid)}
        alive = list(filter(is_alive, known))
        if not alive or time.monotonic() >= end_s:
            return
        for pid in sorted(alive):  # parents first, which would report that their children have died
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_KILL_POLL_S)


def marked_pids(*marks: str) -> list[int]:
    """This user's processes that were started with a variable `NAME=value` that begins with one of the marks.

    A mark that ends with a null character is a whole variable.
    """
    found, begins = [], [os.fsencode(f"\0{mark}") for mark in marks]
    for folder in Path("/proc").glob("[1-9]*"):
        with suppress(OSError):  # it has ended, or belongs to another user
            variables = b"\0" + (folder / "environ").read_bytes() + b"\0"
            if any(begin in variables for begin in begins):
                found.append(int(folder.name))
    return found


def _is_tracker(pid: int) -> bool:
    """Whether the process is a resource tracker of multiprocessing.

    It exits by itself after it has removed the resources that other processes have not released.
    """
    with suppress(OSError):
        return _TRACKER in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def child_pids(pid: int) -> list[int]:
    """The children of a process. Each thread of the process lists the children that it forked (proc(5))."""
    found: list[int] = []
    with suppress(OSError), os.scandir(f"/proc/{pid}/task") as threads:
        for thread in threads:
            with suppress(OSError, ValueError):
                found += map(int, Path(f"{thread.path}/children").read_text().split())
    return found
