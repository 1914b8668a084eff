"""The C library's heap. It keeps freed memory between blocks that are still in use."""

from contextlib import suppress
from math import inf
from time import monotonic

from server.machine.libc import load_libc


def trim_heap() -> None:
    """Gives freed memory back to the system; takes some milliseconds. Only glibc needs it and can do it."""
    with suppress(AttributeError):
        load_libc().malloc_trim(0)


class HeapTrimmer:
    """Trims the heap some time after the last work, and at intervals under lasting work."""

    def __init__(self, delay_s: float, interval_s: float) -> None:
        self._delay_s = delay_s
        self._interval_s = interval_s
        self._latest_s = inf
        """When work that goes on no longer postpones it."""
        self.due_s = inf
        """On the monotonic clock."""

    def postpone(self) -> None:
        """Called after work."""
        now_s = monotonic()
        self._latest_s = min(self._latest_s, now_s + self._interval_s)
        self.due_s = min(now_s + self._delay_s, self._latest_s)

    def trim_if_due(self) -> None:
        """Blocks while it trims."""
        if monotonic() >= self.due_s:
            trim_heap()
            self.due_s = self._latest_s = inf
