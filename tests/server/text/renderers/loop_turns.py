"""Checks that work does not block an event loop: counts turns during the work, or measures turns."""

import asyncio
from collections.abc import Awaitable
from time import thread_time

FREE_TURNS = 10
"""A loop that is not blocked makes many more turns than this during work of 100 ms or more."""
BLOCKED_TURNS = 2


async def count_turns(work: Awaitable[object], *, every_s: float = 0.001) -> int:
    """Counts the running loop's turns until the work is done. Counts one turn per `every_s` seconds at most.

    A loop that the work blocks makes at most one turn.
    """
    task = asyncio.ensure_future(work)
    num_turns = 0
    while not task.done():
        await asyncio.sleep(every_s)
        num_turns += 1
    await task
    return num_turns


class MeasuredLoop(asyncio.SelectorEventLoop):
    """A loop that measures the processor time of its longest turn since `forget`, without other threads."""

    def __init__(self) -> None:
        super().__init__()
        self.longest_turn_s = 0.0

    def forget(self) -> None:
        """Starts the measurement again."""
        self.longest_turn_s = 0.0

    def _run_once(self) -> None:
        begin_s = thread_time()
        super()._run_once()
        self.longest_turn_s = max(self.longest_turn_s, thread_time() - begin_s)
