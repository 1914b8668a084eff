"""Checks that work does not block an event loop: counts turns during the work, or lines of a turn."""

import asyncio
import sys
from collections.abc import Awaitable
from typing import Any

FREE_TURNS = 10
"""A loop that is not blocked makes many more turns than this during work of 100 ms or more."""


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
    """A loop that counts the lines of Python of its longest turn since `forget`, without other threads."""

    def __init__(self) -> None:
        super().__init__()
        self.longest_turn = 0

    def forget(self) -> None:
        """Starts the count again."""
        self.longest_turn = 0

    def _run_once(self) -> None:
        num_lines = 0

        def count(frame: Any, event: str, argument: Any) -> Any:
            nonlocal num_lines
            num_lines += event in ("line", "call")
            return count

        sys.settrace(count)
        try:
            super()._run_once()
        finally:
            sys.settrace(None)
        self.longest_turn = max(self.longest_turn, num_lines)
