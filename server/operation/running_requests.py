"""The requests that are being answered: counted for /load, waited for and cancelled by the drain."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Any


class RunningRequests:
    """One per server; used on the event loop only."""

    def __init__(self) -> None:
        self.is_cancelled = False
        """Whether `cancel` was called: from then on, a cancelled request may still have its client."""
        self._running: set[asyncio.Task[Any]] = set()
        self._last_activity_s = -inf
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_running(self) -> int:
        """How many requests are being answered."""
        return len(self._running)

    @property
    def quiet_s(self) -> float:
        """Seconds since a request last began, ended or was rejected."""
        return 0.0 if self.num_running else time.monotonic() - self._last_activity_s

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Counts the request that this task answers for as long as it runs."""
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        self._idle.clear()
        try:
            yield
        finally:
            self._last_activity_s = time.monotonic()
            self._running.discard(task)
            if not self._running:
                self._idle.set()

    def note_rejection(self) -> None:
        """Records that a request came and was rejected."""
        self._last_activity_s = time.monotonic()

    def cancel(self) -> None:
        """Cancels all running requests, such as those that wait for the rest of their body."""
        self.is_cancelled = True
        for task in self._running:
            task.cancel()

    async def wait_idle(self, timeout_s: float) -> bool:
        """Waits until no request runs; returns False if some still do after the timeout."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True
