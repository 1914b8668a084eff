"""When the kernel started a process, by clocks that nobody sets."""

import os
import time
from pathlib import Path

_NS = 1_000_000_000


def process_start_ns() -> int:
    """When the kernel started this process, in monotonic nanoseconds; now, where /proc does not tell (proc(5)).

    The kernel counts in ticks of 10 ms, so the answer may be early by one.
    """
    now = time.monotonic_ns()
    age_s = process_age_s("self")
    return now if age_s is None else now - int(max(age_s, 0.0) * _NS)


def process_age_s(pid: int | str) -> float | None:
    """How long a process has been there, in seconds; None where /proc does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
    except (OSError, ValueError, AttributeError, IndexError):
        return None
