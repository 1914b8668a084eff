"""Helpers for requests with several parts. The parts take turns on the event loop, and end together."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any, Final, TypeVar

T = TypeVar("T")

_MEMBERS_PER_TURN: Final = 16


async def take_turns(members: Iterable[T]) -> AsyncIterator[T]:
    """Yields the members. Lets the event loop run after every 16 members."""
    for position, member in enumerate(members, start=1):
        yield member
        if position % _MEMBERS_PER_TURN == 0:
            await asyncio.sleep(0)


async def run_concurrently(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Runs coroutines, and returns their results in order. A failure or cancellation cancels all of them."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) async for work in take_turns(works)]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
