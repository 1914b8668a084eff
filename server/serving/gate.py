"""Counts the requests that are being answered and shuts the door for new ones when the server drains."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Any


class RequestGate:
    """One per server; used on the event loop only."""

    def __init__(self) -> None:
        self.is_closed = False
        self.is_cutting = False
        """What is cancelled from now on may be so by this server."""
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
        """How long no request has begun, ended or been refused."""
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

    def note_refusal(self) -> None:
        """A request came that is not taken."""
        self._last_activity_s = time.monotonic()

    def close(self) -> None:
        """Refuses new requests from now on; running ones finish."""
        self.is_closed = True

    def cut(self) -> None:
        """Cancels all that still run: they wait for something that nobody else can end, such as the rest of a body."""
        self.is_cutting = True
        for task in self._running:
            task.cancel()

    async def wait_idle(self, timeout_s: float) -> bool:
        """Waits until no request runs; False when some still do after the timeout."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True
