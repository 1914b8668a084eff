"""Bounds the memory of images that are loaded and wait for the image thread."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from server.renderers.images.errors import MediaError

MAX_WAITING_BYTES = 256 << 20


class LoadBudget:
    """Shares memory among the prompts whose images are loaded; used on the event loop.

    A prompt takes room for what it has received. The oldest prompt never waits, so that it ends and makes
    room; all together may exceed the limit by its images. When the others have filled the room, they wait
    until a prompt ends, even if the oldest loads from a slow host.
    """

    def __init__(self, max_bytes: int = MAX_WAITING_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        """Of all leases."""
        self._leases: list[LoadLease] = []
        """Oldest first."""
        self._waiting: list[_Waiting] = []
        """There is no room for the first one."""

    @asynccontextmanager
    async def hold(self) -> AsyncIterator["LoadLease"]:
        """Holds what a prompt takes until the block ends."""
        lease = LoadLease(self, self._max_bytes)
        self._leases.append(lease)
        try:
            yield lease
        finally:
            self._leases.remove(lease)
            self._num_bytes -= lease.num_bytes
            self._admit()

    async def wait(self, lease: "LoadLease", num_bytes: int) -> None:
        """Adds bytes to a lease once there is room; in order of arrival."""
        if (not self._waiting and self._has_room(num_bytes)) or lease is self._leases[0]:
            self._take(lease, num_bytes)
            return
        waiting = _Waiting(lease, num_bytes, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            await waiting.turn
        except asyncio.CancelledError:
            with suppress(ValueError):
                self._waiting.remove(waiting)
            raise

    def _has_room(self, num_bytes: int) -> bool:
        return self._num_bytes + num_bytes <= self._max_bytes

    def _take(self, lease: "LoadLease", num_bytes: int) -> None:
        self._num_bytes += num_bytes
        lease.num_bytes += num_bytes

    def _admit(self) -> None:
        """After a prompt has ended: gives room to those that wait, in order, and to the oldest anyway."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            has_room = not self._waiting and self._has_room(each.num_bytes)
            if has_room or each.lease is self._leases[0]:
                self._take(each.lease, each.num_bytes)
                if not each.turn.done():
                    each.turn.set_result(None)
            else:
                self._waiting.append(each)


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
