"""The threads for work that would block the event loop."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")

_NICENESS = 4
"""Added to the nice value of a pool's threads, so that the event loop answers probes first."""


class RendererPool(ThreadPoolExecutor):
    """A thread pool that reports how many work items wait, and how long each of them has waited."""

    def __init__(self, num_workers: int, *, name: str) -> None:
        super().__init__(num_workers, thread_name_prefix=name, initializer=_give_way)
        self.on_wait: Callable[[float], None] = lambda _: None
        """Threads call this with the time, in seconds, that their work item has waited."""

    @property
    def num_waiting(self) -> int:
        """The number of work items that no thread has taken yet."""
        return self._work_queue.qsize()

    def submit(self, fn: Callable[P, Result], /, *args: P.args, **kwargs: P.kwargs) -> "Future[Result]":
        submitted_s = perf_counter()

        def run() -> Result:
            self.on_wait(perf_counter() - submitted_s)
            return fn(*args, **kwargs)

        return super().submit(run)


def _give_way() -> None:
    """Lowers the priority of the calling thread. On Linux, other threads keep their priority."""
    with suppress(OSError):
        os.nice(_NICENESS)


class RendererPools:
    """A pool for templates, tokenizer and decoding (`--renderer-num-workers`), and one thread for images.

    With a single thread for images, no two threads use the image processor and its cache at once. Texts do
    not wait for images.
    """

    def __init__(self, num_workers: int, executor: Executor | None = None) -> None:
        """`executor` replaces both pools. The caller closes `executor`."""
        self.owned: dict[str, RendererPool] = {}
        """Purpose (`text` or `mm`) -> pool."""
        if executor is None:
            self.owned["text"] = RendererPool(num_workers, name="renderer")
            self.owned["mm"] = RendererPool(1, name="renderer-mm")
        self.text = executor or self.owned["text"]
        self.images = executor or self.owned["mm"]

    def submit(self, func: Callable[..., object], *args: object) -> None:
        """Queues a call in the pool for texts, and returns at once. The result is dropped."""
        self.text.submit(func, *args)

    async def run(self, func: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """Calls a blocking function in the pool, and returns its result."""
        return await asyncio.get_running_loop().run_in_executor(self.text, partial(func, *args, **kwargs))

    async def run_unless(self, is_small: bool, func: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """Calls a function in the pool for texts, or at once if its work is small (`is_small`)."""
        return func(*args, **kwargs) if is_small else await self.run(func, *args, **kwargs)

    def close(self) -> None:
        """Stops the pools. Work that has not begun is cancelled."""
        for pool in self.owned.values():
            pool.shutdown(wait=True, cancel_futures=True)
