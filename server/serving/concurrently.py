"""Runs coroutines concurrently that belong to one request."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def run_concurrently(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Their results, in order; the first failure, or a client that disconnects, cancels all of them."""
    if len(works) == 1:
        return [await works[0]]
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
