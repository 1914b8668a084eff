"""Bounds the memory of images that are loaded and wait for the image thread."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

MAX_WAITING_BYTES = 256 << 20


class LoadBudget:
    """Serves prompts in order of arrival, on the event loop.

    A prompt of any size may load if no other holds room.
    """

    def __init__(self, max_bytes: int = MAX_WAITING_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_held_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, num_bytes: int) -> AsyncIterator["LoadLease"]:
        """Reserves room for a prompt whose images have at most `num_bytes`; waits until there is room."""
        if self._waiting or not self._has_room(num_bytes):
            await self._wait(num_bytes)
        else:
            self._num_held_bytes += num_bytes
        lease = LoadLease(self, num_bytes)
        try:
            yield lease
        finally:
            lease.shrink_to(0)

    def release(self, num_bytes: int) -> None:
        """Frees room and admits the prompts that wait for it."""
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
                self.release(num_bytes)  # the room was already reserved for the cancelled prompt
            raise

    def _has_room(self, num_bytes: int) -> bool:
        return not self._num_held_bytes or self._num_held_bytes + num_bytes <= self._max_bytes


class LoadLease:
    """One prompt's share of the budget."""

    def __init__(self, budget: LoadBudget, num_bytes: int) -> None:
        self._budget = budget
        self._num_bytes = num_bytes

    def shrink_to(self, num_bytes: int) -> None:
        """Frees what the images do not need."""
        if num_bytes < self._num_bytes:
            self._budget.release(self._num_bytes - num_bytes)
            self._num_bytes = num_bytes
