"""A new model is measured until its memory stops growing. Later, it is measured after each use."""

from typing import TYPE_CHECKING, cast

from router.memory_watch import MemoryWatch
from router.scheduling.scheduler import ModelScheduler
from router.scheduling.terms import ModelRules, Need, SchedulerLimits

if TYPE_CHECKING:
    from router.model_memory import MemoryMeter

GIB = 1 << 30
_ESTIMATE = Need(10 * GIB)


class _Meter:
    """A meter that returns these sizes one after the other."""

    def __init__(self, *sizes_gib: float) -> None:
        self.sizes = list(sizes_gib)

    def measure(self, name: str, pids: object, level: int) -> Need:
        return Need(int(self.sizes.pop(0) * GIB))

    def forget(self, name: str) -> None:
        """Does nothing, because nothing is kept."""


class _Watched:
    """A ready model, measured at the times that the test gives."""

    def __init__(self, *sizes_gib: float) -> None:
        self.meter = _Meter(*sizes_gib)
        self.scheduler = ModelScheduler(SchedulerLimits())
        self.scheduler.set_models({"m": ModelRules(need=_ESTIMATE)}, 0.0)
        self.watch = MemoryWatch(cast("MemoryMeter", self.meter), self.scheduler, lambda actions: None)
        self.scheduler.arrive(1, "m", 0.0)
        self.scheduler.became_ready(1, 1.0)
        self.watch.follow(1, "m", [1])

    async def need_at(self, now: float) -> float:
        """The model's need in GiB, after all measurements that are due."""
        await self.watch._measure_due(now)
        return self.scheduler.view()["m"].need.ram_bytes / GIB


async def test_a_model_needs_its_estimate_until_two_measurements_agree():
    """vLLM on a CPU takes the memory of its KV cache only while it serves."""
    watched = _Watched(4, 6, 9.5, 9.5)
    assert [await watched.need_at(now) for now in (1, 5, 11, 21, 31)] == [10, 10, 10, 10, 9.5]
    assert watched.meter.sizes == []


async def test_a_measurement_above_the_estimate_counts_at_once():
    watched = _Watched(8, 12, 14, 14)
    assert [await watched.need_at(now) for now in (1, 11, 21, 31)] == [10, 12, 14, 14]


async def test_a_model_that_takes_no_more_is_measured_if_it_is_used():
    watched = _Watched(4, 4, 5)
    assert [await watched.need_at(now) for now in (1, 11, 200)] == [10, 4, 4]
    watched.watch.note_use("m")
    assert [await watched.need_at(now) for now in (260, 261)] == [5, 5]
