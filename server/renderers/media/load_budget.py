"""Bounds the memory of images that are loaded and wait for the image thread."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from server.renderers.media.errors import MediaError

MAX_WAITING_BYTES = 256 << 20


class LoadBudget:
    """Shares memory among the prompts whose images are loaded; used on the event loop.

    A prompt takes room for what it has received, so that a slow host holds nothing back. The oldest prompt
    never waits, so that it ends and makes room; all together may exceed the limit by its images.
    """

    def __init__(self, max_bytes: int = MAX_WAITING_BYTES) -> None:
        self._max_bytes = max_bytes
        self._leases: list[LoadLease] = []
        """Oldest first."""
        self._waiting: list[_Waiting] = []

    @asynccontextmanager
    async def hold(self) -> AsyncIterator["LoadLease"]:
        """Holds what a prompt takes until the block ends."""
        lease = LoadLease(self, self._max_bytes)
        self._leases.append(lease)
        try:
            yield lease
        finally:
            self._leases.remove(lease)
            self._admit()

    async def wait(self, lease: "LoadLease", num_bytes: int) -> None:
        """Adds bytes to a lease once there is room; in order of arrival."""
        waiting = _Waiting(lease, num_bytes, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            self._admit()
            await waiting.turn
        finally:
            with suppress(ValueError):
                self._waiting.remove(waiting)

    def _admit(self) -> None:
        room = self._max_bytes - sum(lease.num_bytes for lease in self._leases)
        has_room = True
        for waiting in list(self._waiting):
            has_room = has_room and waiting.num_bytes <= room
            if has_room or waiting.lease is self._leases[0]:
                room -= waiting.num_bytes
                waiting.lease.num_bytes += waiting.num_bytes
                self._waiting.remove(waiting)
                if not waiting.turn.done():
                    waiting.turn.set_result(None)


class LoadLease:
    """One prompt's share of the budget."""

    def __init__(self, budget: LoadBudget, max_bytes: int) -> None:
        self._budget = budget
        self._max_bytes = max_bytes
        self.num_bytes = 0

    async def grow(self, num_bytes: int) -> None:
        """Takes room for more bytes.

        Raises:
            MediaError: the prompt's images are larger than the whole budget.
        """
        if self.num_bytes + num_bytes > self._max_bytes:
            raise MediaError(f"the images of a prompt are larger than {self._max_bytes} bytes together")
        await self._budget.wait(self, num_bytes)


class _Waiting(NamedTuple):
    lease: LoadLease
    num_bytes: int
    turn: asyncio.Future[None]
