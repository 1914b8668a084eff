"""Measures the memory of models, router and standbys while they run, and reports it to the scheduler."""

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from base.machine.processes import pss_bytes
from router.model_memory import MemoryMeter
from router.scheduling.scheduler import ModelScheduler
from router.scheduling.terms import NOTHING, Action, Need

logger = logging.getLogger(__name__)

_LOOK_S: Final = 1.0
_NEW_S: Final = 10.0
"""Seconds between measurements of a new process until it stops growing. vLLM fills its KV cache late."""
_MODEL_S: Final = 60.0
"""Seconds between later measurements of a model that is in use. Each measurement takes processor time."""
_GROWTH: Final = Need(16 << 20, 16 << 20)
_ROUTER_S: Final = 10.0


@dataclass
class _Followed:
    """The latest process of a model that is ready or asleep. A generation is the number of such a process."""

    generation: int
    pids: Collection[int]
    measured_s: float = -math.inf
    is_used: bool = True
    """Whether the model had a request since its last measurement."""
    last: Need = NOTHING
    is_settled: bool = False
    """Whether the memory grew little between two measurements, so that the process has all of its memory."""

    def is_due(self, now: float) -> bool:
        wait_s = _MODEL_S if self.is_settled else _NEW_S
        return (self.is_used or not self.is_settled) and now - self.measured_s >= wait_s

    def note(self, measured: Need) -> None:
        self.is_settled = self.is_settled or measured.minus(self.last).fits_in(_GROWTH)
        self.last = measured


class MemoryWatch:
    """Measures memory at intervals. Its methods run on the event loop, and slow work runs in threads."""

    def __init__(self, meter: MemoryMeter, scheduler: ModelScheduler, apply: Callable[[list[Action]], None]) -> None:
        """`apply` carries out actions that the scheduler returns."""
        self.router_bytes = 0
        self.standby_bytes = 0
        self._meter = meter
        self._scheduler = scheduler
        self._apply = apply
        self._followed: dict[str, _Followed] = {}
        self._measuring: asyncio.Task[None] | None = None

    def begin(self, standby_bytes: Callable[[], int]) -> None:
        """Starts measuring. `standby_bytes` returns the memory of all standbys."""
        self._measuring = asyncio.create_task(self._run(standby_bytes), name="memory")

    def close(self) -> None:
        if self._measuring is not None:
            self._measuring.cancel()

    def follow(self, generation: int, name: str, pids: Collection[int]) -> None:
        """Measures these processes regularly from now on. Called when the generation is ready or asleep."""
        self._followed[name] = _Followed(generation, pids)

    def forget(self, generation: int, name: str) -> None:
        """Stops measuring the generation, because it has ended."""
        if name in self._followed and self._followed[name].generation == generation:
            del self._followed[name]
            self._meter.forget(name)

    def note_use(self, name: str) -> None:
        if (followed := self._followed.get(name)) is not None:
            followed.is_used = True

    async def _run(self, standby_bytes: Callable[[], int]) -> None:
        router_s = -math.inf
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                if time.monotonic() - router_s >= _ROUTER_S:
                    router_s = time.monotonic()
                    self.router_bytes = await asyncio.to_thread(pss_bytes, os.getpid())
                    self.standby_bytes = await asyncio.to_thread(standby_bytes)
                await self._measure_due(time.monotonic())
            except Exception:
                logger.exception("the memory of models could not be measured")

    async def _measure_due(self, now: float) -> None:
        for name, followed in list(self._followed.items()):
            if not followed.is_due(now):
                continue
            followed.measured_s, followed.is_used = now, False
            generation = self._scheduler.generations.get(followed.generation)
            level = generation.level if generation is not None else 0
            need = await asyncio.to_thread(self._meter.measure, name, followed.pids, level)
            if self._followed.get(name) is followed:
                followed.note(need)
                now = time.monotonic()
                self._apply(self._scheduler.measured(followed.generation, need, now, is_settled=followed.is_settled))
            else:
                self._meter.forget(name)  # the model has ended meanwhile
