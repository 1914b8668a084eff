"""Counts how often an event loop gets around to a short timer while some work is under way."""

import asyncio
from collections.abc import Awaitable

FREE_TURNS = 10
"""Work of a hundred milliseconds and more leaves a loop that is not blocked many more turns than this."""
BLOCKED_TURNS = 2


async def count_turns(work: Awaitable[object], *, every_s: float = 0.001) -> int:
    """Turns of the running loop, one in so many seconds or as often as it can, until the work is done.

    A loop that is blocked by the work has one at most.
    """
    task = asyncio.ensure_future(work)
    num_turns = 0
    while not task.done():
        await asyncio.sleep(every_s)
        num_turns += 1
    await task
    return num_turns
