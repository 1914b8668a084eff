"""When the kernel started a process, by clocks that nobody sets."""

import os
import time
from pathlib import Path

_NS = 1_000_000_000
_READINGS = 5


def process_start_ns() -> int:
    """When the kernel started this process, in monotonic nanoseconds; now, where /proc does not tell (proc(5)).

    The kernel counts in ticks of 10 ms, so the answer may be early by one.
    """
    now = time.monotonic_ns()
    try:
        return min(now, int(_started_s("self") * _NS) - _asleep_ns())
    except (OSError, ValueError, AttributeError, IndexError):
        return now


def process_age_s(pid: int | str) -> float | None:
    """How long a process has been there, in seconds; None where /proc does not tell."""
    try:
        return time.clock_gettime(time.CLOCK_BOOTTIME) - _started_s(pid)
    except (OSError, ValueError, AttributeError, IndexError):
        return None


def _started_s(pid: int | str) -> float:
    """Seconds from the machine's start to the process's."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _asleep_ns() -> int:
    """How long the machine was suspended, for which the monotonic clock stood still.

    The two clocks are read one after the other; where this process has to wait in between, the difference is too
    large, never too small.
    """
    return min(-time.monotonic_ns() + time.clock_gettime_ns(time.CLOCK_BOOTTIME) for _ in range(_READINGS))
