"""Counts the requests that are being answered and shuts the door for new ones when the server drains."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf


class RequestGate:
    """One per server; used on the event loop only."""

    def __init__(self) -> None:
        self.num_running = 0
        self.is_closed = False
        self._last_activity_s = -inf
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def quiet_s(self) -> float:
        """How long no request has begun, ended or been refused."""
        return 0.0 if self.num_running else time.monotonic() - self._last_activity_s

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Counts one request for as long as it runs."""
        self.num_running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._last_activity_s = time.monotonic()
            self.num_running -= 1
            if not self.num_running:
                self._idle.set()

    def note_refusal(self) -> None:
        """A request came that is not taken."""
        self._last_activity_s = time.monotonic()

    def close(self) -> None:
        """Refuses new requests from now on; running ones finish."""
        self.is_closed = True

    async def wait_idle(self, timeout_s: float) -> bool:
        """Waits until no request runs; False when some still do after the timeout."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True
