"""The thread pool for a renderer's blocking work."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


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
