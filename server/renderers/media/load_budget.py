"""Bounds the images that have been fetched and wait for the one thread that makes them ready for the model."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

MAX_WAITING_BYTES = 256 << 20


class LoadBudget:
    """First come, first served; lives on the event loop. A prompt that is alone is let in whatever it brings."""

    def __init__(self, max_bytes: int = MAX_WAITING_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_held_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, num_bytes: int) -> AsyncIterator["LoadShare"]:
        """Room for a prompt whose images are so many bytes at most; waits until there is."""
        if self._waiting or not self._has_room(num_bytes):
            await self._wait(num_bytes)
        else:
            self._num_held_bytes += num_bytes
        share = LoadShare(self, num_bytes)
        try:
            yield share
        finally:
            share.shrink_to(0)

    def give_back(self, num_bytes: int) -> None:
        """So much room is free again."""
        self._num_held_bytes -= num_bytes
        while self._waiting and (self._waiting[0][1].done() or self._has_room(self._waiting[0][0])):
            wanted, turn = self._waiting.popleft()
            if not turn.done():
                self._num_held_bytes += wanted
                turn.set_result(None)

    async def _wait(self, num_bytes: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((num_bytes, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(num_bytes)  # the turn had come, and nobody is there to take it
            raise

    def _has_room(self, num_bytes: int) -> bool:
        return not self._num_held_bytes or self._num_held_bytes + num_bytes <= self._max_bytes


class LoadShare:
    """What one prompt has of the budget."""

    def __init__(self, budget: LoadBudget, num_bytes: int) -> None:
        self._budget = budget
        self._num_bytes = num_bytes

    def shrink_to(self, num_bytes: int) -> None:
        """The images turned out smaller."""
        if num_bytes < self._num_bytes:
            self._budget.give_back(self._num_bytes - num_bytes)
            self._num_bytes = num_bytes
