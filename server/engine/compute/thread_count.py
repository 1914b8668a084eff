"""Chooses how many threads compute a step, by what other processes leave of the processors.

All threads of a matrix product wait for the slowest one, so that a thread without a processor of its own
costs more than it adds. The kernel's accounting shows when another number may be better; the time of
comparable steps, before and after the change, decides.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

from server.machine.processors import ProcessorTime, ProcessorUse

logger = logging.getLogger(__name__)

_WINDOW_S = 0.25
"""Two periods of a cgroup's quota, and dozens of the scheduler's time slices."""
_MIN_STEPS = 2
_MAX_TRIAL_STEPS = 6
"""A trial ends, and the number before is used again, if hardly any of so many steps are like those before."""
_LOST_SHARE = 0.1
"""Fewer threads are tried from here on. Alone on its processors, an engine loses 0.01 to 0.04; two threads
lose 0.13 under a quota of 1.5 processors, 0.4 beside a busy process."""
_LOST_CHANGE = 0.1
_LEFT_CHANGE = 0.3
"""A rise of the lost share, or of the number of processors that others leave, makes a trial due at once.
Beside one busy process on two processors, about 1.0 is left, and 1.9 after its end."""
_WORTH_THREADS = 0.95
"""Further threads must make a step at least this much shorter."""
_FEWER_DELAY_S = 2.0
_MORE_DELAY_S = 15.0
_MAX_DELAY_S = 60.0
"""Seconds of computing after a failed trial: it takes three steps or more, each up to three times as long."""
_IDLE_DELAY_S = 5.0
_IDLE_PROCESSOR = 0.5
"""More threads are tried after this shorter delay where so much of a processor is left: it costs little then,
and steps of more tokens may need the threads that a single token did not."""
_LOG_INTERVAL_S = 60.0


class ThreadCount:
    """Counts and times steps, and changes the number of threads between two of them; one thread calls it."""

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
        self._skips_step = False
        self._computed_s = 0.0
        """The clock of delays: a server with few requests pays for no more trials than a busy one."""
        self._window = _Window(read_time())
        self._trial: _Trial | None = None
        self._fewer = _Attempts(_FEWER_DELAY_S, _LOST_CHANGE)
        self._more = _Attempts(_MORE_DELAY_S, _LEFT_CHANGE)
        self._stride = 1
        self._logged_s = -math.inf

    @property
    def num_threads(self) -> int:
        return self._num_threads

    def record(self, num_tokens: int, seconds: float) -> None:
        """Takes the duration of a step, after which the number of threads may change."""
        if self._is_fixed:
            return
        self._computed_s += seconds
        if self._skips_step:  # the first step with another number starts threads and builds kernels
            self._skips_step = False
            self._begin_window()
            return
        self._window.add(num_tokens, seconds)
        if self._window.step_s < _WINDOW_S or self._window.num_steps < _MIN_STEPS:
            return
        if self._trial is None:
            self._consider(self._end_window())
        else:
            self._judge(self._trial)

    def _begin_window(self) -> ProcessorTime:
        now = self._read_time()
        self._window = _Window(now)
        return now

    def _end_window(self) -> "_Ended":
        """Begins the next window; returns this one and what the kernel says about it."""
        ended = self._window
        return _Ended(ended, self._begin_window().since(ended.begin))

    def _consider(self, before: "_Ended") -> None:
        """Begins a trial if one is due."""
        now, num_threads = self._computed_s, self._num_threads
        lost_share, num_left = before.use.lost_share, before.use.num_left
        if num_threads > 1 and lost_share >= _LOST_SHARE and self._fewer.is_due(now, lost_share):
            running = round(num_threads * (1 - lost_share))
            self._begin_trial(before, min(max(1, running), num_threads - 1))
        elif num_threads < self._maximum:
            is_idle = num_left >= num_threads + _IDLE_PROCESSOR
            if self._more.is_due(now, num_left, max_delay_s=_IDLE_DELAY_S if is_idle else _MAX_DELAY_S):
                self._begin_trial(before, min(self._maximum, num_threads + self._stride))

    def _begin_trial(self, before: "_Ended", num_threads: int) -> None:
        self._trial = _Trial(before, num_threads, self._num_threads)
        self._change_to(num_threads)

    def _judge(self, trial: "_Trial") -> None:
        """Keeps the tried number only if comparable steps were faster, or with fewer threads as fast."""
        ratio = self._window.compare(trial.before.window)
        if ratio is None and self._window.num_steps < _MAX_TRIAL_STEPS:
            return
        self._trial = None
        if ratio is not None and ratio < (1 / _WORTH_THREADS if trial.is_fewer else _WORTH_THREADS):
            self._keep(trial, ratio)
        else:
            self._take_back(trial, was_compared=ratio is not None)

    def _keep(self, trial: "_Trial", ratio: float) -> None:
        use = self._end_window().use
        if trial.is_fewer:
            self._more.fail(self._computed_s, use.num_left)
            self._stride = 1
        else:
            self._more.reset()
            self._stride *= 2
        self._fewer.reset()
        self._log_change(trial, ratio)

    def _take_back(self, trial: "_Trial", *, was_compared: bool) -> None:
        attempts, use = (self._fewer if trial.is_fewer else self._more), trial.before.use
        if not was_compared:
            attempts.reset()  # without evidence, the delay until the next trial does not double
        attempts.fail(self._computed_s, use.lost_share if trial.is_fewer else use.num_left)
        self._stride = 1
        self._change_to(trial.num_threads_before)

    def _change_to(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._use_threads(num_threads)
        self._skips_step = True

    def _log_change(self, trial: "_Trial", ratio: float) -> None:
        """One line a minute at most."""
        now = self._clock()
        is_due = now >= self._logged_s + _LOG_INTERVAL_S
        if is_due:
            self._logged_s = now
        logger.log(
            logging.INFO if is_due else logging.DEBUG,
            "computing with %d of %d threads: %.2f times as long per step as with %d, which waited %.0f %% of the time",
            trial.num_threads,
            self._maximum,
            ratio,
            trial.num_threads_before,
            100 * trial.before.use.lost_share,
        )


class _Window:
    """Consecutive steps with one number of threads."""

    def __init__(self, begin: ProcessorTime) -> None:
        self.begin = begin
        self._steps: defaultdict[int, list[float]] = defaultdict(list)
        self.step_s = 0.0
        self.num_steps = 0

    def add(self, num_tokens: int, seconds: float) -> None:
        self._steps[_size_class(num_tokens)].append(seconds)
        self.step_s += seconds
        self.num_steps += 1

    def compare(self, other: "_Window") -> float | None:
        """How many times as long steps took as comparable ones of `other`; None if too few are comparable."""
        spent_s = expected_s = 0.0
        num_compared = 0
        for size_class, durations in self._steps.items():
            if others := other._steps.get(size_class):
                spent_s += sum(durations)
                expected_s += len(durations) * sum(others) / len(others)
                num_compared += len(durations)
        return spent_s / expected_s if num_compared >= _MIN_STEPS else None


def _size_class(num_tokens: int) -> int:
    """Steps of one class compute about the same number of tokens: at most a fifth more than the smallest."""
    return round(4 * math.log2(max(1, num_tokens)))


class _Ended(NamedTuple):
    """A window and the processor time used in it."""

    window: _Window
    use: ProcessorUse


class _Trial(NamedTuple):
    """Steps with another number of threads than the window before."""

    before: _Ended
    num_threads: int
    num_threads_before: int

    @property
    def is_fewer(self) -> bool:
        return self.num_threads < self.num_threads_before


class _Attempts:
    """When to try fewer, or more, threads again: after a delay that doubles, or once the load has changed."""

    def __init__(self, min_delay_s: float, change: float) -> None:
        self._min_delay_s = min_delay_s
        self._change = change
        self.reset()

    def reset(self) -> None:
        """The next attempt is due at once."""
        self._delay_s = 0.0
        self._failed_s = -math.inf
        self._evidence = 0.0

    def fail(self, now_s: float, evidence: float) -> None:
        """`evidence` is the lost share, or the number of processors left, of the time before."""
        self._failed_s = now_s
        self._evidence = evidence
        self._delay_s = min(max(self._min_delay_s, 2 * self._delay_s), _MAX_DELAY_S)

    def is_due(self, now_s: float, evidence: float, *, max_delay_s: float = _MAX_DELAY_S) -> bool:
        return now_s >= self._failed_s + min(self._delay_s, max_delay_s) or evidence >= self._evidence + self._change
