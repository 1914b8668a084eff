"""Chooses how many threads compute a step, by the processor time that other processes leave free.

All threads of a matrix product wait for the slowest thread, so a thread that must share a processor costs
more time than it saves. The kernel reports how long threads waited for a processor, and how much processor
time other processes used. The effect of each change is measured.
"""

import logging
import math
from collections.abc import Callable
from statistics import median
from time import monotonic
from typing import NamedTuple

from base.machine.processors import ProcessorTime, ProcessorUse

logger = logging.getLogger(__name__)

_WINDOW_S = 0.25
"""The seconds of steps after which the number of threads is chosen again. They cover two periods of a
cgroup's quota, and dozens of the kernel's time slices."""
_MIN_GAIN = 0.03
"""An added thread stays only if steps become shorter by more than this share. A removed thread comes back
unless steps become longer by less than this share."""
_FIRST_DELAY_S = 0.5
"""The seconds of computing after a wrong change until the next change in the same direction. Each further
wrong change doubles this delay, up to `_MAX_DELAY_S`."""
_MAX_DELAY_S = 60.0
_LOG_INTERVAL_S = 60.0


class _Trial(NamedTuple):
    """A change of the number of threads. The steps of the next window show whether the change was right."""

    num_before: int
    steps_before: dict[int, list[float]]
    """The size of a step in tokens -> the seconds of such steps before the change."""


class _Delay:
    """Delays changes in one direction (more or fewer threads) after a wrong one, in seconds of computing."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._end_s = 0.0

    def is_over(self, now_s: float) -> bool:
        return now_s >= self._end_s

    def note(self, now_s: float, *, was_right: bool) -> None:
        self._seconds = 0.0 if was_right else min(max(_FIRST_DELAY_S, 2 * self._seconds), _MAX_DELAY_S)
        self._end_s = now_s + self._seconds


class ThreadCount:
    """Changes the number of threads between two steps, by the times of earlier steps. Used by one thread.

    A thread is removed if all threads together wait for a processor for more than half of the time in which
    one thread has work. It is added again if other processes leave at least half a processor unused. On an
    idle machine, two threads together wait for 0.02 to 0.08 of one thread's time. They wait for 0.26 of it
    under a quota of 1.5 processors, and for 0.8 beside a busy process. Clients on the same processors also
    make threads wait, but so briefly that removing a thread makes steps longer. So a change is reverted if
    steps of the same size show that it was wrong.
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
        """Begins with `maximum` threads. If `is_fixed` is true, the number of threads never changes."""
        self._maximum = maximum
        self._is_fixed = is_fixed or maximum == 1
        self._use_threads = use_threads
        self._read_time = read_time
        self._clock = clock
        self.num_threads = maximum
        use_threads(maximum)
        self._begin = read_time()
        self._window_s = 0.0
        self._computed_s = 0.0
        """The seconds of all steps so far. Delays are measured in this time, so that an idle server does
        not change the number of threads more often than a busy one."""
        self._steps: dict[int, list[float]] = {}
        """The size of a step in tokens -> the seconds of such steps in this window."""
        self._num_tokens = 0
        self._is_steady = False
        """Whether the last two steps had the same size. Later steps then probably have this size too."""
        self._trial: _Trial | None = None
        self._fewer, self._more = _Delay(), _Delay()
        self._logged_s = -math.inf

    def record(self, seconds: float, num_tokens: int) -> None:
        """Records a step's duration and its size in tokens. May then change the number of threads."""
        if self._is_fixed:
            return
        self._computed_s += seconds
        self._window_s += seconds
        self._steps.setdefault(num_tokens, []).append(seconds)
        self._is_steady, self._num_tokens = num_tokens == self._num_tokens, num_tokens
        if self._window_s < _WINDOW_S:
            return
        begin, self._begin, self._window_s = self._begin, self._read_time(), 0.0
        steps, self._steps = self._steps, {}
        self._decide(self._begin.since(begin), steps)

    def _decide(self, use: ProcessorUse, steps: dict[int, list[float]]) -> None:
        trial, self._trial = self._trial, None
        if trial is not None and not self._end(trial, steps):
            self._change_to(trial.num_before, use.lost_share)
            return
        num_running = max(1, round(self.num_threads * (1 - use.lost_share)))
        num_free = min(self._maximum, round(use.num_left))
        if num_running < self.num_threads and self._is_steady and self._fewer.is_over(self._computed_s):
            self._try(num_running, use.lost_share, steps)
        elif self.num_threads < num_free and self._more.is_over(self._computed_s):
            self._try(num_free, use.lost_share, steps)

    def _try(self, num_threads: int, lost_share: float, steps: dict[int, list[float]]) -> None:
        self._trial = _Trial(self.num_threads, steps)
        self._change_to(num_threads, lost_share)

    def _end(self, trial: _Trial, steps: dict[int, list[float]]) -> bool:
        """Whether the change was right. It counts as right if no steps of the same size can be compared."""
        is_more = self.num_threads > trial.num_before
        before = trial.steps_before
        ratios = [median(steps[n]) / median(before[n]) for n in steps.keys() & before.keys()]
        # More threads must make steps faster. Fewer threads are right unless they make steps much slower.
        limit = 1 - _MIN_GAIN if is_more else 1 + _MIN_GAIN
        was_right = not ratios or median(ratios) < limit
        (self._more if is_more else self._fewer).note(self._computed_s, was_right=was_right)
        return was_right

    def _change_to(self, num_threads: int, lost_share: float) -> None:
        """Changes the number of threads. Logs at level INFO at most once a minute, otherwise at DEBUG."""
        before, self.num_threads = self.num_threads, num_threads
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
