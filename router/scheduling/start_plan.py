"""Which models may start now, and which are stopped for them: one decision for all that wait for a start.

Standard library only; models are read, and what is planned is kept in the plan. The models are placed one
after the other, in the order in which they began to wait. Each one reserves its memory and its victims, so
that a later one does not count on them.

All models together have what is free now and what their processes hold, but at most the budget. Each process
takes its whole need of that, so that what a start has not taken yet is not given twice.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final, Literal

from base.wording import format_bytes
from router.scheduling.model import Generation, Model
from router.scheduling.terms import UNLIMITED, Need, SchedulerLimits

_POLL_S: Final = 0.1
"""How often the plan is made anew while a start waits only for memory."""
_SLOW_POLL_S: Final = 1.0
"""The same while models are to be stopped for it, too: other programs may give memory back before."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What becomes of one model that waits for its start."""

    kind: Literal["start", "stop", "wait", "short", "blocked", "refuse"]
    """`stop`: stop the victims now. `short`: only memory that is not really free delays it.
    `blocked`: it must not run when a model starts that waits for longer."""
    victims: tuple[Generation, ...] = ()
    """Of `stop`; of `wait`, those that admit no requests from now on."""
    text: str = ""


class StartPlan:
    """Created for one moment; `place` is called for each waiting model, the one that waits longest first."""

    def __init__(
        self,
        generations: Iterable[Generation],
        limits: SchedulerLimits,
        free: Need | None,
        now: float,
        settled_s: float,
    ) -> None:
        """
        Args:
            free: the memory that is free now; None if the system does not tell.
            settled_s: until then memory of ended processes may come back: the plan counts with the budget.
        """
        self.due_s: float | None = None
        """When time alone can change the plan."""
        self._limits = limits
        self._free = free
        self._now = now
        self._settled_s = settled_s
        self._processes = list(generations)
        self._staying = [each for each in self._processes if not each.is_stopping]
        """What will run when all that is planned so far is done."""
        self._excluded: set[str] = set()
        """Models that must not start before those that were placed earlier."""
        self._is_closed = False
        """Whether an earlier model needs more than there is: no later one may have others stopped."""
        held = Need.sum(each.held for each in self._processes)
        self._memory = limits.budget if free is None else limits.budget.at_most(free.plus(held))
        """All memory that models can have now."""
        self._present = _Room(self._num_slots, self._memory)
        self._planned = _Room(self._num_slots, limits.budget if self._is_settling else self._memory)
        for each in self._processes:
            self._present.take(each.need)
        for each in self._staying:
            self._planned.take(each.need)

    def has_room(self, model: Model) -> bool:
        """Whether a process of it can start now, beside all that run."""
        return self._fits(model, self._present, self._processes)

    def place(self, model: Model) -> Placement:
        """Decides about one model, and reserves what it needs."""
        placement = self._place(model)
        if placement.kind in ("refuse", "blocked"):
            return placement
        expected = Generation(0, model, model.hungry_since_s)
        if placement.kind == "start":
            self._present.take(expected.need)
            self._processes.append(expected)
        else:
            self._excluded |= model.excludes
        self._planned.take(expected.need)
        self._staying.append(expected)
        return placement

    def _place(self, model: Model) -> Placement:
        if text := self._lasting_conflict(model):
            return Placement("refuse", text=text)
        if model.name in self._excluded:
            return Placement("blocked")
        if self._fits(model, self._planned, self._staying):
            return self._start(model)
        if self._is_closed:
            return Placement("wait")
        if not self._can_suffice(model):
            return self._short(model)
        return self._replace(model)

    # With room

    def _start(self, model: Model) -> Placement:
        """Starts it unless processes that are ending must be gone first, or their memory must be back."""
        if any(other.name in model.excludes for other in self._processes):
            return Placement("wait")
        if self._present.holds(model.need):
            return Placement("start")
        if self._is_settling:
            self._present.take(model.need)
            self._note_due(min(self._now + _POLL_S, self._settled_s))
        return Placement("wait")

    def _short(self, model: Model) -> Placement:
        """Other programs have the memory: waits for them, for a limited time."""
        self._is_closed = True
        since_s = self._now if model.short_since_s is None else model.short_since_s
        end_s = since_s + self._limits.memory_wait_s
        if self._now >= end_s:
            return Placement("refuse", text=self._describe_shortage(model))
        self._note_due(min(self._now + _POLL_S, end_s))
        return Placement("short")

    # Without room

    def _replace(self, model: Model) -> Placement:
        """Chooses what is stopped for this one: idle processes if they suffice.

        Those that start or wait for a start are counted on last, and stopped only when they have been ready.
        """
        candidates = [other for other in self._staying if not self._stays_for_good(other)]
        if self._free is not None:
            self._note_due(self._now + _SLOW_POLL_S)
        for other in candidates:
            self._note_due(other.since_s + self._limits.min_stay_s)
            self._note_due(self._claim_s(other, model))
        idle = [other for other in candidates if self._is_idle(other)]
        if (victims := self._choose(model, idle)) is not None:
            self._reserve(victims)
            return Placement("stop", tuple(victims))
        if (victims := self._choose(model, candidates)) is None:
            return self._wait()
        self._reserve(victims)
        claimed = (other for other in victims if other.state == "ready" and self._claim_s(other, model) <= self._now)
        return Placement("wait", tuple(claimed))

    def _is_idle(self, other: Generation) -> bool:
        """Whether it can be stopped now."""
        if other.state != "ready" or other.leases or self._now < other.since_s + self._limits.min_stay_s:
            return False
        return not other.model.num_waiting or other.claimed_by is not None

    def _claim_s(self, other: Generation, model: Model) -> float:
        """When the other one stops to admit requests: both have then had their time."""
        return max(model.hungry_since_s, other.since_s) + self._limits.max_wait_s

    def _choose(self, model: Model, candidates: Sequence[Generation]) -> list[Generation] | None:
        """Of the candidates those that it excludes, and those that cost least and suffice.

        None if all together do not.
        """

        def order(other: Generation) -> tuple[bool, _Rank, float, float]:
            is_free = other.name not in model.excludes
            return is_free, self._rank(other, model), other.restart_cost(self._now), other.idle_since_s

        if any(other.name in model.excludes and other not in candidates for other in self._staying):
            return None
        room = replace(self._planned)
        chosen: list[Generation] = []
        for other in sorted(candidates, key=order):
            if other.name not in model.excludes and room.holds(model.need):
                break
            chosen.append(other)
            room.give(other.need)
        for other in reversed(chosen[:-1]):  # a large one that was chosen late may have made earlier ones needless
            if other.name not in model.excludes and room.without(other.need).holds(model.need):
                chosen.remove(other)
                room = room.without(other.need)
        return chosen if room.holds(model.need) else None

    def _rank(self, other: Generation, model: Model) -> "_Rank":
        if other.state == "draining":
            return _Rank.DRAINING
        if other.claimed_by is not None:
            return _Rank.CLAIMED
        if other.state != "ready":
            return _Rank.NOT_READY
        return _Rank.CLAIMABLE if self._claim_s(other, model) <= self._now else _Rank.IN_ITS_TIME

    def _reserve(self, victims: Iterable[Generation]) -> None:
        for other in victims:
            self._planned.give(other.need)
            self._staying.remove(other)

    def _wait(self) -> Placement:
        """Something must change first; what there is is reserved for this model."""
        self._is_closed = True
        return Placement("wait")

    # Sums

    def _fits(self, model: Model, room: "_Room", running: Iterable[Generation]) -> bool:
        return model.excludes.isdisjoint(other.name for other in running) and room.holds(model.need)

    @property
    def _num_slots(self) -> float:
        return float("inf") if self._limits.max_running is None else self._limits.max_running

    @property
    def _is_settling(self) -> bool:
        return self._now < self._settled_s

    def _can_suffice(self, model: Model) -> bool:
        """Whether the memory is enough beside pinned models; during starts and settling nobody can tell."""
        is_clear = not self._is_settling and all(other.state in ("ready", "draining") for other in self._processes)
        return not is_clear or model.need.fits_in(self._beside_pinned(self._memory))

    def _beside_pinned(self, memory: Need) -> Need:
        return memory.minus(Need.sum(other.need for other in self._processes if self._stays_for_good(other)))

    def _stays_for_good(self, other: Generation) -> bool:
        return other.model.rules.pinned and other.state != "draining"

    def _lasting_conflict(self, model: Model) -> str:
        """Why no wait can help: the budget, the number or the exclusions, with pinned models alone."""
        pinned = [other for other in self._processes if self._stays_for_good(other)]
        beside = f" beside {_list_needs(pinned)}, which stay" if pinned else ""
        if excluded := [other.name for other in pinned if other.name in model.excludes]:
            return f"{model.name} cannot start while {', '.join(excluded)} runs, which is pinned."
        if len(pinned) + 1 > self._num_slots:
            return f"{model.name} cannot start{beside}: at most {self._limits.max_running} models run (--max-running)."
        if not model.need.fits_in(self._beside_pinned(self._limits.budget)):
            return (
                f"{model.name} needs {_text(model.need)}, which the budget of {_text(self._limits.budget)} "
                f"does not have{beside} (--memory-budget)."
            )
        return ""

    def _describe_shortage(self, model: Model) -> str:
        free = "an unknown amount" if self._free is None else _text(self._free)
        text = f"{model.name} needs {_text(model.need)}, but {free} of memory is free"
        if self._processes:
            text += f"; running: {_list_needs(self._processes)}"
        return text + f". Waited {self._limits.memory_wait_s:g} s."

    def _note_due(self, time_s: float) -> None:
        if time_s > self._now and (self.due_s is None or time_s < self.due_s):
            self.due_s = time_s


class _Rank(IntEnum):
    """Candidates of a lower rank are stopped first."""

    CLAIMED = 0
    """It admits no requests, as its memory is promised to another model already."""
    DRAINING = 1
    CLAIMABLE = 2
    """It is ready and has had its time."""
    IN_ITS_TIME = 3
    NOT_READY = 4


@dataclass
class _Room:
    """What is left."""

    slots: float
    memory: Need

    def holds(self, need: Need) -> bool:
        return self.slots >= 1 and need.fits_in(self.memory)

    def take(self, need: Need) -> None:
        self.slots -= 1
        self.memory = self.memory.minus(need)

    def give(self, need: Need) -> None:
        self.slots += 1
        self.memory = self.memory.plus(need)

    def without(self, need: Need) -> "_Room":
        return _Room(self.slots - 1, self.memory.minus(need))


def _list_needs(processes: Iterable[Generation]) -> str:
    return ", ".join(f"{each.name} ({_text(each.need)})" for each in processes)


def _text(need: Need) -> str:
    """`2.0 GiB` or `2.0 GiB and 10.0 GiB of GPU memory`."""
    ram = "any amount" if need.ram_bytes >= UNLIMITED else format_bytes(max(0, need.ram_bytes))
    if need.gpu_bytes <= 0 or need.gpu_bytes >= UNLIMITED:
        return ram
    return f"{ram} and {format_bytes(need.gpu_bytes)} of GPU memory"
