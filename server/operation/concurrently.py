"""Spreads the work of one request: over tasks that run concurrently, or over turns of the event loop."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_MEMBERS_PER_TURN = 16
"""Formatting a token for the first time takes 30 us, and each has up to `max_logprobs` candidates."""


async def run_concurrently(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Their results, in order; the first failure, or a client that disconnects, cancels all of them."""
    if len(works) == 1:
        return [await works[0]]
    tasks: list[asyncio.Task[T]] = []
    try:
        async for work in take_turns(works):
            tasks.append(asyncio.create_task(work))
        return await asyncio.gather(*tasks)
    finally:
        for work in works[len(tasks) :]:
            work.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def take_turns(members: Iterable[T]) -> AsyncIterator[T]:
    """The members; lets the event loop run after every few."""
    for position, member in enumerate(members, start=1):
        yield member
        if position % _MEMBERS_PER_TURN == 0:
            await asyncio.sleep(0)
