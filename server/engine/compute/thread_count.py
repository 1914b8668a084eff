"""Chooses how many threads compute a step, by the processor time that other processes leave.

All threads of a matrix product wait for the slowest one, so that a thread without a processor of its own
costs more than it adds. The kernel accounts for how long threads wait, and for what others use; whether a
change was right is measured.
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
"""Two periods of a cgroup's quota, and dozens of the scheduler's time slices."""
_MIN_GAIN = 0.03
"""A further thread must make steps shorter by so much: others can use its processor."""
_FIRST_DELAY_S = 0.5
"""After a change that was not right, the next one like it waits for so many seconds of computing, then for
twice as many, up to the maximum."""
_MAX_DELAY_S = 60.0
_LOG_INTERVAL_S = 60.0


class _Trial(NamedTuple):
    """A change of the number of threads, until the window after it has shown its effect."""

    num_before: int
    steps_before: dict[int, list[float]]
    """Seconds of the steps before the change, by their number of tokens."""


class _Delay:
    """How long a change waits that was not right the last time, on the clock of computed seconds."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._end_s = 0.0

    def is_over(self, now_s: float) -> bool:
        return now_s >= self._end_s

    def note(self, now_s: float, *, was_right: bool) -> None:
        self._seconds = 0.0 if was_right else min(max(_FIRST_DELAY_S, 2 * self._seconds), _MAX_DELAY_S)
        self._end_s = now_s + self._seconds


class ThreadCount:
    """Times steps, and changes the number of threads between two of them; one thread calls it.

    A thread goes if all of them together wait as long as half a thread computes. It comes back if others
    leave half a processor. Two threads wait 0.02 to 0.08 threads alone, 0.26 under a quota of 1.5 processors,
    and 0.8 beside a busy process. That leaves one processor; after its end, 1.9 are left. Clients on the same
    processors make threads wait, too, but too briefly to do without a thread. So a change is taken back if
    steps of as many tokens do not get shorter.
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
        self._steps: dict[int, list[float]] = {}
        """Seconds of the window's steps, by their number of tokens."""
        self._num_tokens = 0
        self._is_steady = False
        """Whether the last two steps had as many tokens: the next ones probably can be compared with them."""
        self._trial: _Trial | None = None
        self._fewer, self._more = _Delay(), _Delay()
        self._logged_s = -math.inf

    @property
    def num_threads(self) -> int:
        return self._num_threads

    def record(self, seconds: float, num_tokens: int) -> None:
        """Takes the duration of a step and its size, after which the number of threads may change."""
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
        num_running = max(1, round(self._num_threads * (1 - use.lost_share)))
        num_free = min(self._maximum, round(use.num_left))
        if num_running < self._num_threads and self._is_steady and self._fewer.is_over(self._computed_s):
            self._try(num_running, use.lost_share, steps)
        elif self._num_threads < num_free and self._more.is_over(self._computed_s):
            self._try(num_free, use.lost_share, steps)

    def _try(self, num_threads: int, lost_share: float, steps: dict[int, list[float]]) -> None:
        self._trial = _Trial(self._num_threads, steps)
        self._change_to(num_threads, lost_share)

    def _end(self, trial: _Trial, steps: dict[int, list[float]]) -> bool:
        """Whether the change was right. Without steps of the same size, it counts as right."""
        is_more = self._num_threads > trial.num_before
        ratios = [median(steps[n]) / median(trial.steps_before[n]) for n in steps.keys() & trial.steps_before.keys()]
        was_right = not ratios or median(ratios) < (1 - _MIN_GAIN if is_more else 1 + _MIN_GAIN)
        (self._more if is_more else self._fewer).note(self._computed_s, was_right=was_right)
        return was_right

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
