"""Measures the loop lag, which is the time by which a timer of the event loop fires too late."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

INTERVAL_S = 0.02
WINDOW_S = 60.0


class LoopLag(NamedTuple):
    """Quantiles of the loop lag in seconds, over about the last minute."""

    p50_s: float
    p99_s: float
    max_s: float


class LoopHeartbeat:
    """Measures the loop lag with a timer that is due every 20 ms on the event loop."""

    def __init__(self, on_lag: Callable[[float], None]) -> None:
        """`on_lag` is called at each beat with the lag in seconds."""
        self._on_lag = on_lag
        self._on_beat: Callable[[], None]
        self._handle: asyncio.TimerHandle | None = None
        self._due_s = 0.0
        self._recent: deque[float] = deque(maxlen=int(WINDOW_S / INTERVAL_S))

    @property
    def lag(self) -> LoopLag:
        """The quantiles of the lag. May be read on any thread. Takes half a millisecond."""
        lags = sorted(self._recent) or [0.0]
        return LoopLag(lags[len(lags) // 2], lags[len(lags) * 99 // 100], lags[-1])

    def start(self, on_beat: Callable[[], None] = lambda: None) -> None:
        """Starts the timer on the running loop. `on_beat` is called 50 times a second."""
        self._on_beat = on_beat
        self._wait(asyncio.get_running_loop())

    def close(self) -> None:
        """Stops the timer. Called before the loop ends."""
        if self._handle is not None:
            self._handle.cancel()

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due_s = loop.time() + INTERVAL_S
        self._handle = loop.call_at(self._due_s, self._beat, loop)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        lag_s = max(0.0, loop.time() - self._due_s)
        self._recent.append(lag_s)
        self._on_lag(lag_s)
        self._on_beat()
        self._wait(loop)
