"""The thread pool for a renderer's blocking work, and the event loop's share of that work."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from time import perf_counter
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_LOOP_SHARE_S = 0.002
"""Most time that small work may take on the event loop per turn of the loop."""


class RendererPool(ThreadPoolExecutor):
    """A thread pool that reports how many work items wait, and how long each one waited."""

    def __init__(self, num_workers: int, *, name: str) -> None:
        super().__init__(num_workers, thread_name_prefix=name)
        self.num_workers = num_workers
        self._on_wait: Callable[[float], None] = lambda _: None

    @property
    def num_waiting(self) -> int:
        """Work items that no thread has taken."""
        return self._work_queue.qsize()

    def subscribe_waits(self, on_wait: Callable[[float], None]) -> None:
        """Calls `on_wait` with the seconds that a work item has waited, on the thread that begins it."""
        self._on_wait = on_wait

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> "Future[R]":
        submitted_s = perf_counter()

        def run() -> R:
            self._on_wait(perf_counter() - submitted_s)
            return fn(*args, **kwargs)

        return super().submit(run)


def make_async(func: Callable[P, R], executor: Executor) -> Callable[P, Coroutine[Any, Any, R]]:
    """Returns a coroutine function with `func`'s signature that runs `func` in `executor`."""

    @functools.wraps(func)
    async def run_in_pool(*args: P.args, **kwargs: P.kwargs) -> R:
        call = functools.partial(func, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(executor, call)

    return run_in_pool


class LoopShare:
    """The time per turn of the event loop that small work may spend on the loop itself.

    Switching threads costs as much as rendering a short prompt, so short prompts run on the loop. The limit
    exists because hundreds of them may arrive in one turn.
    """

    def __init__(self) -> None:
        self._spent_s = 0.0

    @property
    def is_used_up(self) -> bool:
        """Whether more work must wait for the loop's next turn."""
        return self._spent_s >= _LOOP_SHARE_S

    def run(self, func: Callable[[], R]) -> R:
        """Runs `func` on the event loop and counts its time."""
        if not self._spent_s:
            asyncio.get_running_loop().call_soon(self._renew)
        begin_s = perf_counter()
        try:
            return func()
        finally:
            self._spent_s += perf_counter() - begin_s

    def _renew(self) -> None:
        self._spent_s = 0.0
