"""Spreads the work of one request: over tasks that run concurrently, or over turns of the event loop."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")

_MEMBERS_PER_TURN = 16
"""Formatting a token for the first time takes 30 us, and each has up to `max_logprobs` candidates."""


async def run_concurrently(works: Iterable[Coroutine[Any, Any, T]], *, at_once: int | None = None) -> list[T]:
    """Their results, in order; the first failure, or a client that disconnects, cancels all of them.

    `at_once` is for work in the pool: its threads may finish hundreds of works between two turns of the event
    loop, which then resumes as many tasks in one turn.
    """
    results: list[T] = []
    works = iter(works)
    while True:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(work) async for work in take_turns(islice(works, at_once))]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        if not tasks:
            return results
        results += [task.result() for task in tasks]


async def take_turns(members: Iterable[T]) -> AsyncIterator[T]:
    """The members; lets the event loop run after every few."""
    for position, member in enumerate(members, start=1):
        yield member
        if position % _MEMBERS_PER_TURN == 0:
            await asyncio.sleep(0)
