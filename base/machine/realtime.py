"""Real-time priority for a process that mostly sleeps, so that busy processes do not delay its answers."""

import os
import time
from typing import Final

_PERIOD_S: Final = 1.0
_MAX_SHARE: Final = 0.2
"""Largest share of one processor; a process that uses more would slow down those that do the work."""


class RealtimePriority:
    """Lets this process run at once, if permitted (CAP_SYS_NICE), as long as it needs little CPU time.

    Processes that it forks have no such priority.
    """

    def __init__(self, *, is_wanted: bool) -> None:
        self._is_possible = is_wanted
        self._is_on = False
        self._began_s = time.monotonic()
        self._used_s = time.process_time()
        self._set(True)

    def turn(self, now: float) -> None:
        """Called at least once per second."""
        if now - self._began_s < _PERIOD_S:
            return
        used_s = time.process_time()
        self._set(used_s - self._used_s <= _MAX_SHARE * (now - self._began_s))
        self._began_s, self._used_s = now, used_s

    def _set(self, is_on: bool) -> None:
        if not self._is_possible or is_on == self._is_on:
            return
        policy, priority = (os.SCHED_FIFO, 1) if is_on else (os.SCHED_OTHER, 0)
        try:  # to take SCHED_RESET_ON_FORK back would need a privilege
            os.sched_setscheduler(0, policy | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
        except OSError:  # not permitted
            self._is_possible = False
        self._is_on = is_on
