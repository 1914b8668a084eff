"""Counts how often an event loop runs a short timer while some work is running."""

import asyncio
from collections.abc import Awaitable

FREE_TURNS = 10
"""During 100 ms of work or more, a loop that is not blocked makes many more turns than this."""
BLOCKED_TURNS = 2


async def count_turns(work: Awaitable[object], *, every_s: float = 0.001) -> int:
    """Turns of the running loop until the work is done, at most one per `every_s` seconds.

    A loop that the work blocks makes at most one.
    """
    task = asyncio.ensure_future(work)
    num_turns = 0
    while not task.done():
        await asyncio.sleep(every_s)
        num_turns += 1
    await task
    return num_turns
