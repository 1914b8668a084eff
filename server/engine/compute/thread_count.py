"""Chooses how many threads compute a step, by what other processes leave of the processors.

All threads of a matrix product wait for the slowest one, so that a thread without a processor of its own
costs more than it adds. The kernel accounts for how long threads wait, and for what others use.
"""

import logging
import math
from collections.abc import Callable
from time import monotonic

from base.machine.processors import ProcessorTime

logger = logging.getLogger(__name__)

_WINDOW_S = 0.25
"""Two periods of a cgroup's quota, and dozens of the scheduler's time slices."""
_PROVEN_S = 2.0
"""Further threads that are taken back within so many seconds of computing were no gain: the delay doubles."""
_MAX_DELAY_S = 60.0
_LOG_INTERVAL_S = 60.0


class ThreadCount:
    """Times steps, and changes the number of threads between two of them; one thread calls it.

    A thread goes if all of them together wait as long as half a thread computes, and comes back if others
    leave half a processor. Two threads wait 0.02 to 0.08 threads alone, 0.26 under a quota of 1.5 processors,
    and 0.8 beside a busy process, which leaves one processor; 1.9 are left after its end.
    """

    def __init__(
        self,
        maximum: int,
        *,
        is_fixed: bool,
        use_threads: Callable[[int], None],
        read_time: Callable[[], ProcessorTime],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Begins with `maximum` threads, and stays there if `is_fixed`."""
        self._maximum = maximum
        self._is_fixed = is_fixed or maximum == 1
        self._use_threads = use_threads
        self._read_time = read_time
        self._clock = clock
        self._num_threads = maximum
        use_threads(maximum)
        self._begin = read_time()
        self._window_s = 0.0
        self._computed_s = 0.0
        """The clock of delays: a server with few requests changes no more often than a busy one."""
        self._raised_s = -math.inf
        self._delay_s = 0.0
        self._more_from_s = 0.0
        self._logged_s = -math.inf

    @property
    def num_threads(self) -> int:
        return self._num_threads

    def record(self, seconds: float) -> None:
        """Takes the duration of a step, after which the number of threads may change."""
        if self._is_fixed:
            return
        self._computed_s += seconds
        self._window_s += seconds
        if self._window_s < _WINDOW_S:
            return
        begin, self._begin, self._window_s = self._begin, self._read_time(), 0.0
        use = self._begin.since(begin)
        num_running = max(1, round(self._num_threads * (1 - use.lost_share)))
        num_free = min(self._maximum, round(use.num_left))
        if num_running < self._num_threads:
            self._delay()
            self._change_to(num_running, use.lost_share)
        elif num_free > self._num_threads and self._computed_s >= self._more_from_s:
            self._raised_s = self._computed_s
            self._change_to(num_free, use.lost_share)

    def _delay(self) -> None:
        was_no_gain = self._computed_s < self._raised_s + _PROVEN_S
        self._delay_s = min(max(_PROVEN_S, 2 * self._delay_s), _MAX_DELAY_S) if was_no_gain else 0.0
        self._more_from_s = self._computed_s + self._delay_s

    def _change_to(self, num_threads: int, lost_share: float) -> None:
        """Logs one line a minute at most."""
        before, self._num_threads = self._num_threads, num_threads
        self._use_threads(num_threads)
        now = self._clock()
        is_due = now >= self._logged_s + _LOG_INTERVAL_S
        if is_due:
            self._logged_s = now
        logger.log(
            logging.INFO if is_due else logging.DEBUG,
            "computing with %d of %d threads: %d waited %.0f %% of the time",
            num_threads,
            self._maximum,
            before,
            100 * lost_share,
        )
