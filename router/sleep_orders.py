"""Puts models' processes to sleep and wakes them, as the scheduler decides. Counts and times the results."""

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from router.child.child import Child
from router.child.server import SleepError
from router.memory_watch import MemoryWatch
from router.model_memory import MemoryMeter
from router.scheduling.scheduler import ModelScheduler
from router.scheduling.terms import Action

logger = logging.getLogger(__name__)


@dataclass
class SleepFigures:
    """How often one model was put to sleep or woken, how long that took, and why it failed."""

    counts: Counter[str] = field(default_factory=Counter)
    last_s: dict[str, float] = field(default_factory=dict)
    """`sleep` or `wake` -> the seconds that it took when it last succeeded."""
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(`sleep` or `wake`, reason) -> the number of failures. A reason is `error`, `timeout` or `refused`."""
    refusal: str = ""
    """Why the model's server last refused to sleep. Empty if it never refused."""


class SleepOrders:
    """The orders that run, and the figures of earlier ones."""

    def __init__(
        self,
        scheduler: ModelScheduler,
        meter: MemoryMeter,
        memory: MemoryWatch,
        apply: Callable[[Iterable[Action]], None],
    ) -> None:
        """`apply` carries out the scheduler's actions after an order has ended."""
        self._scheduler = scheduler
        self._meter = meter
        self._memory = memory
        self._apply = apply
        self._tasks: set[asyncio.Task[None]] = set()
        self.figures = defaultdict[str, SleepFigures](SleepFigures)
        """Name of a model -> its figures."""

    def give(self, number: int, child: Child, level: int) -> None:
        """Puts a process to sleep at `level`, or wakes it if `level` is 0. `number` is its generation."""
        task = asyncio.create_task(self._follow(number, child, level))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, number: int, child: Child, level: int) -> None:
        begin_s, name, verb = time.monotonic(), child.entry.name, "sleep" if level else "wake"
        figures, event = self.figures[name], self._scheduler.fell_asleep if level else self._scheduler.woke
        try:
            if level:
                await child.server.sleep(level)
            else:
                await child.server.wake(self._meter.size_bytes(name) or 0)
        except SleepError as err:
            process = self._scheduler.generations.get(number)
            if process is not None and process.state != "draining":
                figures.failures[verb, err.kind] += 1
                self._give_up(number, child, verb, err)
            return
        took_s = time.monotonic() - begin_s
        figures.counts[verb] += 1
        figures.last_s[verb] = took_s
        logger.info("%s %s after %.2f s", name, f"sleeps at level {level}" if level else "is awake", took_s)
        if number in self._scheduler.generations:
            self._memory.follow(number, name, child.pids)
        self._apply(event(number, time.monotonic()))

    def _give_up(self, number: int, child: Child, verb: str, err: SleepError) -> None:
        """Stops or kills a process that did not fall asleep or wake. The next request starts the model again.

        If the server refuses to sleep repeatedly for the same reason, only the first refusal is logged.
        """
        reason = f"It did not {'fall asleep' if verb == 'sleep' else 'wake'}: {err}"
        if verb == "wake" or err.kind != "refused":
            child.fail(reason)
            return
        figures = self.figures[child.entry.name]
        if reason != figures.refusal:
            logger.warning("%s is stopped instead of sleeping. %s", child.entry.name, reason)
        figures.refusal = reason
        self._apply(self._scheduler.could_not_sleep(number, reason, time.monotonic()))
