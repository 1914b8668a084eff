"""When the kernel started a process, by clocks that cannot be set."""

import os
import time
from pathlib import Path

_NS = 1_000_000_000
_READINGS = 5


def process_start_ns(pid: int | str = "self") -> int:
    """When the kernel started a process (proc(5)), in monotonic nanoseconds; now, if /proc cannot be read.

    The kernel counts in ticks of 10 ms, so the result may be one tick early.
    """
    now = time.monotonic_ns()
    try:
        return min(now, int(_started_s(pid) * _NS) - _suspended_ns())
    except (OSError, ValueError, AttributeError, IndexError):
        return now


def process_age_s(pid: int | str) -> float | None:
    """Seconds since a process was started; None if /proc cannot be read."""
    try:
        return time.clock_gettime(time.CLOCK_BOOTTIME) - _started_s(pid)
    except (OSError, ValueError, AttributeError, IndexError):
        return None


def _started_s(pid: int | str) -> float:
    """Seconds from the boot of the machine to the start of the process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _suspended_ns() -> int:
    """How long the machine was suspended: the monotonic clock does not count that time.

    The two clocks are read one after the other. If this process is descheduled between the readings, the
    difference is too large, never too small; the smallest of several counts.
    """
    return min(-time.monotonic_ns() + time.clock_gettime_ns(time.CLOCK_BOOTTIME) for _ in range(_READINGS))
