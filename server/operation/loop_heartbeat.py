"""Measures the loop lag: how late a timer fires that is due every 20 ms on the event loop."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

INTERVAL_S = 0.02
WINDOW_S = 60.0


class LoopLag(NamedTuple):
    """How late the beats of about the last minute were, in seconds."""

    p50_s: float
    p99_s: float
    max_s: float


class LoopHeartbeat:
    """Runs on the event loop that it measures; `start` it there, `close` it before the loop ends."""

    def __init__(self, on_beat: Callable[[float], None]) -> None:
        """`on_beat` is called with the lateness in seconds."""
        self._on_beat = on_beat
        self._handle: asyncio.TimerHandle | None = None
        self._due_s = 0.0
        self._worst: deque[tuple[float, float]] = deque()
        """Time and lateness of beats, in descending lateness: the first is the worst of the window."""
        self._recent: deque[float] = deque(maxlen=int(WINDOW_S / INTERVAL_S))

    @property
    def worst_lag_s(self) -> float:
        """The longest lateness of the last minute; may be read from any thread."""
        try:
            return self._worst[0][1]
        except IndexError:
            return 0.0

    @property
    def lag(self) -> LoopLag:
        """The quantiles of the lag; sorts three thousand numbers, so it is for the status page only."""
        lags = sorted(self._recent) or [0.0]
        return LoopLag(lags[len(lags) // 2], lags[len(lags) * 99 // 100], lags[-1])

    def start(self) -> None:
        """Starts the timer on the running loop."""
        loop = asyncio.get_running_loop()
        self._due_s = loop.time() + INTERVAL_S
        self._handle = loop.call_at(self._due_s, self._beat, loop)

    def close(self) -> None:
        """Stops the timer."""
        if self._handle is not None:
            self._handle.cancel()

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        lag_s = max(0.0, now_s - self._due_s)
        self._note(now_s, lag_s)
        self._on_beat(lag_s)
        self._due_s = now_s + INTERVAL_S
        self._handle = loop.call_at(self._due_s, self._beat, loop)

    def _note(self, now_s: float, lag_s: float) -> None:
        self._recent.append(lag_s)
        while self._worst and self._worst[-1][1] <= lag_s:
            self._worst.pop()
        self._worst.append((now_s, lag_s))
        while self._worst[0][0] < now_s - WINDOW_S:
            self._worst.popleft()
