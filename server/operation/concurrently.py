"""Spreads the work of one request: over tasks that run concurrently, or over turns of the event loop."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

_MEMBERS_PER_TURN = 16
"""Formatting a token for the first time takes 30 us, and each has up to `max_logprobs` candidates."""


async def run_concurrently(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Their results, in order; the first failure, or a client that disconnects, cancels all of them."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) async for work in take_turns(works)]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def take_turns(members: Iterable[T]) -> AsyncIterator[T]:
    """The members; lets the event loop run after every few."""
    for position, member in enumerate(members, start=1):
        yield member
        if position % _MEMBERS_PER_TURN == 0:
            await asyncio.sleep(0)
