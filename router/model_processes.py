"""Follows the processes of models, each in a task, from their start to their end. Keeps how they have ended.

A generation is one process of a model from its start to its end. Generations have numbers.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, NamedTuple, TypeAlias

from base.lifecycle import StartInfo
from router.child.child import Child
from router.memory_watch import MemoryWatch
from router.metrics import RouterMetrics
from startup.errors import code_of
from startup.storage.run_record import read_start

logger = logging.getLogger(__name__)

_NUM_STARTS: Final = 200

BeforeStop: TypeAlias = Callable[[Child], Awaitable[None]]
"""Is awaited before a ready process without requests is stopped."""


class _Life(NamedTuple):
    """The process of one generation, and the task that follows it."""

    child: Child
    task: asyncio.Task[None]
    """Runs until all of the generation's processes have ended."""


class ProcessEvents(NamedTuple):
    """What is called when something happens to a generation with this number."""

    ready: Callable[[int, Child], None]
    """The process answers requests from now on."""
    crashed: Callable[[int], None]
    """The first process has ended by itself. Its descendants may still run."""
    ended: Callable[[int, str, str | None, str], None]
    """All processes have ended. Gets the model's name, the reason of a failure, and the code of its cause."""


class ModelProcesses:
    """The processes that run, and the results of earlier ones. Used on the event loop of the main thread."""

    def __init__(self, metrics: RouterMetrics, memory: MemoryWatch, events: ProcessEvents) -> None:
        self.starts: deque[dict[str, Any]] = deque(maxlen=_NUM_STARTS)
        """The last starts of models. The oldest start is first."""
        self.exit_codes: dict[str, int] = {}
        """The name of a model -> the exit code of its last process."""
        self._metrics = metrics
        self._memory = memory
        self._events = events
        self._lives: dict[int, _Life] = {}
        """Number of a generation -> its process and task."""

    def __iter__(self) -> Iterator[Child]:
        return iter([life.child for life in self._lives.values()])

    def __getitem__(self, number: int) -> Child:
        return self._lives[number].child

    def get(self, number: int) -> Child | None:
        """The process of a generation. None if it has ended."""
        life = self._lives.get(number)
        return None if life is None else life.child

    def number_of(self, child: Child) -> int | None:
        for number, life in self._lives.items():
            if life.child is child:
                return number
        return None

    def start(self, number: int, child: Child, before_stop: BeforeStop) -> None:
        """Starts a process as the generation of this number, and follows it until it ends."""
        task = asyncio.create_task(self._follow(number, child, before_stop), name=f"model {child.entry.name}")
        self._lives[number] = _Life(child, task)

    async def wait(self, name: str) -> None:
        """Waits until all processes of this model that run now have ended."""
        tasks = {life.task for life in self._lives.values() if life.child.entry.name == name}
        if tasks:
            await asyncio.wait(tasks)

    async def wait_for_all(self) -> None:
        """Waits until no process runs."""
        while self._lives:
            await asyncio.wait({life.task for life in self._lives.values()})

    async def _follow(self, number: int, child: Child, before_stop: BeforeStop) -> None:
        begin_s, name = time.monotonic(), child.entry.name
        record: dict[str, Any] = {"model": name, "begin_s": time.time(), "took_s": None, "outcome": "starting"}
        self.starts.append(record)

        def note_ready() -> None:
            took_s = time.monotonic() - begin_s
            record.update(took_s=round(took_s, 3), outcome="ready")
            logger.info("%s is ready after %.2f s", name, took_s)
            self._metrics.note_start(name, "ready", StartInfo.from_notes(read_start(child.pids)))
            self._memory.follow(number, name, child.pids)
            self._events.ready(number, child)

        reason: str | None = "The router failed to start it"
        code = ""
        try:
            logger.info("%s starts", name)
            reason = await child.run(note_ready, before_stop, lambda: self._events.crashed(number))
        except Exception as err:
            logger.exception("the process of %s cannot be followed", name)
            reason = f"The router failed: {err}"
        finally:
            if child.exit_code is not None:
                self.exit_codes[name] = child.exit_code
            del self._lives[number]
            self._memory.forget(number, name)
            if record["took_s"] is None:
                outcome = "stopped" if reason is None else "failed"
                record.update(took_s=round(time.monotonic() - begin_s, 3), outcome=outcome)
                code = code_of(child.cause) if outcome == "failed" else ""
                self._metrics.note_start(name, outcome, StartInfo("", code))
            self._events.ended(number, name, reason, code)
