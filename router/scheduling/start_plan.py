"""Decides which models start now, and which are stopped for them: one plan for all models that wait.

Standard library only. The plan reads models and changes only itself. The models are placed one after the
other, in the order in which they began to wait. Each one reserves its memory and its victims, so that a later
one does not count on them.

All models together may use the free memory and the memory of their processes, but at most the budget. Each
process counts with its whole need, so that memory that a start has not taken yet is not given twice.

A sleeping process is woken in the place of a start: it is set aside while its model is placed. It takes no
slot, excludes nobody, and is the first to be stopped for others.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final, Literal, NamedTuple, Self

from base.wording import format_bytes
from router.scheduling.model import Generation, Model
from router.scheduling.terms import NOTHING, UNLIMITED, Need, SchedulerLimits

_POLL_S: Final = 0.1
"""How often the plan is made anew while a start waits only for memory."""
_SLOW_POLL_S: Final = 1.0
"""How often while models must be stopped for it, too: other programs may give memory back first."""


class Victim(NamedTuple):
    """A process that makes room for another model."""

    process: Generation
    level: int = 0
    """The level of sleep into which it falls; 0: it is stopped."""

    @property
    def part(self) -> "_Room":
        """The room that becomes free."""
        part = _Room.of_staying(self.process)
        return part.without(_Room(0, self.process.levels[self.level])) if self.level else part


@dataclass(frozen=True, slots=True)
class Placement:
    """What becomes of one model that waits for its start."""

    kind: Literal["start", "stop", "wait", "short", "blocked", "refuse"]
    """`start`: or wake. `stop`: stop the victims now, or have them fall asleep.
    `short`: it fits by the router's sums, but the machine has less free memory than they say.
    `blocked`: it must not run when a model starts that waits for longer."""
    victims: tuple[Victim, ...] = ()
    """`stop`: the processes to stop. `wait`: the processes that admit no requests from now on."""
    text: str = ""


class StartPlan:
    """A plan for one moment. `place` is called for each waiting model, the longest waiting one first."""

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
            free: the memory that is free now; None if it is unknown.
            settled_s: until then, memory of ended processes may come back, and only the budget limits.
        """
        self.due_s: float | None = None
        """When time alone can change the plan."""
        self._limits = limits
        self._free = free
        self._now = now
        self._settled_s = settled_s
        self._processes = list(generations)
        self._staying = [each for each in self._processes if not each.is_stopping]
        """The processes that will run when the plan so far is carried out."""
        self._excluded: set[str] = set()
        """Models that must not start before the models that were placed earlier."""
        self._is_closed = False
        """Whether an earlier model needs more than there is: then no model is stopped for a later one."""
        held = Need.sum(each.held for each in self._processes)
        self._memory = limits.budget if free is None else limits.budget.at_most(free.plus(held))
        """All memory that models can have now."""
        self._present = _Room(self._num_slots, self._memory)
        self._planned = _Room(self._num_slots, limits.budget if self._is_settling else self._memory)
        for each in self._processes:
            self._present.take(_Room.of_present(each))
        for each in self._staying:
            self._planned.take(_Room.of_staying(each))

    def has_room(self, model: Model) -> bool:
        """Whether a process of it can start now, beside all that run."""
        return not self._has_conflict(model) and self._present.holds(model.need)

    def level_for(self, other: Generation, spare_bytes: int | None = None) -> int:
        """The best level at which a process can sleep now; 0 without one, or without memory for its weights.

        Args:
            spare_bytes: the machine's memory that its sleep may take; if not given, all free memory.
        """
        if other.state not in ("starting", "ready", "falling asleep", "waking"):
            return 0
        spare_bytes = max(0, self._present.memory.ram_bytes if spare_bytes is None else spare_bytes)
        fitting = (level for level, need in other.levels.items() if _growth(other, need) <= spare_bytes)
        return next(fitting, 0)

    def place(self, model: Model) -> Placement:
        """Decides about one model, and reserves what it needs."""
        sleeper = model.sleeper
        if sleeper is None:
            return self._reserved(model, self._place(model))
        if sleeper not in self._staying:  # it is to be stopped for an earlier model
            return Placement("blocked")
        self._processes.remove(sleeper)
        self._staying.remove(sleeper)
        self._present.give(_Room.of_present(sleeper))
        self._planned.give(_Room.of_staying(sleeper))
        placement = self._reserved(model, self._place(model))
        if placement.kind != "start":
            self._processes.append(sleeper)
            self._present.take(_Room.of_present(sleeper))
        if placement.kind in ("refuse", "blocked"):
            self._staying.append(sleeper)
            self._planned.take(_Room.of_staying(sleeper))
        return placement

    def _reserved(self, model: Model, placement: Placement) -> Placement:
        if placement.kind in ("refuse", "blocked"):
            return placement
        expected = Generation(0, model, model.hungry_since_s)
        if placement.kind == "start":
            self._present.take(_Room(1, model.need))
            self._processes.append(expected)
        else:
            self._excluded |= model.excludes
        self._planned.take(_Room(1, model.need))
        self._staying.append(expected)
        return placement

    def _place(self, model: Model) -> Placement:
        if text := self._lasting_conflict(model):
            if model.sleeper is not None:  # a start may need less
                return Placement("stop", (Victim(model.sleeper),))
            return Placement("refuse", text=text)
        if model.name in self._excluded:
            return Placement("blocked")
        if not any(_excludes(model, other) for other in self._staying) and self._planned.holds(model.need):
            return self._start(model)
        if self._is_closed:
            return Placement("wait")
        if not self._can_suffice(model):
            return self._short(model)
        return self._replace(model)

    # With room

    def _start(self, model: Model) -> Placement:
        """Starts it unless processes that are ending must be gone first, or their memory must be back."""
        if self._has_conflict(model):
            return Placement("wait")
        if self._present.holds(model.need):
            return Placement("start")
        if self._is_settling:
            self._present.take(_Room(1, model.need))
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
        """Chooses the processes to stop for this model: idle ones if they suffice.

        Processes that start, or whose models wait, come last, and are stopped only when they have been ready.
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
        ready = (victim for victim in victims if victim.process.state == "ready")
        return Placement("wait", tuple(each for each in ready if self._claim_s(each.process, model) <= self._now))

    def _is_idle(self, other: Generation) -> bool:
        """Whether it can be stopped now."""
        if other.state == "asleep":
            return True
        if other.state != "ready" or other.leases or self._now < other.since_s + self._limits.min_stay_s:
            return False
        return not other.model.num_waiting or other.claimed_by is not None

    def _claim_s(self, other: Generation, model: Model) -> float:
        """When the other one stops admitting requests: both have then had their time."""
        return max(model.hungry_since_s, other.since_s) + self._limits.max_wait_s

    def _choose(self, model: Model, candidates: Sequence[Generation]) -> list[Victim] | None:
        """The candidates that the model excludes, and the cheapest others, until there is room.

        If it suffices, models that should sleep fall asleep. If it does not, they are stopped.
        None if all together do not suffice.
        """

        def order(other: Generation) -> tuple[bool, _Rank, float, float]:
            is_free, rank = not _excludes(model, other), self._rank(other, model)
            cost = 0.0 if rank is _Rank.ASLEEP else other.restart_cost(self._now)
            return is_free, rank, cost, other.idle_since_s

        if any(_excludes(model, other) and other not in candidates for other in self._staying):
            return None
        ordered = sorted(candidates, key=order)
        chosen = self._choose_first(model, self._with_levels(model, ordered))
        return self._choose_first(model, map(Victim, ordered)) if chosen is None else chosen

    def _with_levels(self, model: Model, ordered: Iterable[Generation]) -> Iterator[Victim]:
        """Gives each a level of sleep, so that their weights together fit into the machine's memory."""
        aside = NOTHING if model.sleeper is None else model.sleeper.need  # it has this until it wakes
        present = self._present.memory.minus(aside)
        spare_bytes = min(self._planned.memory.minus(model.need).ram_bytes, present.ram_bytes)
        for other in ordered:
            level = self.level_for(other, spare_bytes) if other.model.rules.on_swap == "sleep" else 0
            if level:
                spare_bytes -= _growth(other, other.levels[level])
            yield Victim(other, level)

    def _choose_first(self, model: Model, ordered: Iterable[Victim]) -> list[Victim] | None:
        room = replace(self._planned)
        chosen: list[Victim] = []
        for victim in ordered:
            if not _excludes(model, victim.process) and room.holds(model.need):
                break
            chosen.append(victim)
            room.give(victim.part)
        for victim in reversed(chosen[:-1]):  # a large one that was chosen late may have made earlier ones needless
            if not _excludes(model, victim.process) and room.without(victim.part).holds(model.need):
                chosen.remove(victim)
                room = room.without(victim.part)
        return chosen if room.holds(model.need) else None

    def _rank(self, other: Generation, model: Model) -> "_Rank":
        if other.state == "asleep":
            return _Rank.ASLEEP
        if other.state in ("draining", "falling asleep"):
            return _Rank.DRAINING
        if other.claimed_by is not None:
            return _Rank.CLAIMED
        if other.state != "ready":
            return _Rank.NOT_READY
        return _Rank.CLAIMABLE if self._claim_s(other, model) <= self._now else _Rank.IN_ITS_TIME

    def _reserve(self, victims: Iterable[Victim]) -> None:
        for victim in victims:
            self._planned.give(victim.part)
            self._staying.remove(victim.process)

    def _wait(self) -> Placement:
        """Waits for a change, and reserves for this model the room that there is."""
        self._is_closed = True
        return Placement("wait")

    # Sums

    def _has_conflict(self, model: Model) -> bool:
        """Whether a model that it excludes still has a process that is not asleep."""
        return any(other.name in model.excludes and other.state != "asleep" for other in self._processes)

    @property
    def _num_slots(self) -> float:
        return float("inf") if self._limits.max_running is None else self._limits.max_running

    @property
    def _is_settling(self) -> bool:
        return self._now < self._settled_s

    def _can_suffice(self, model: Model) -> bool:
        """Whether the memory is enough beside pinned models. During starts and settling: maybe, so true."""
        steady = ("ready", "asleep", "draining")
        is_clear = not self._is_settling and all(other.state in steady for other in self._processes)
        return not is_clear or model.need.fits_in(self._beside_pinned(self._memory))

    def _beside_pinned(self, memory: Need) -> Need:
        return memory.minus(Need.sum(other.need for other in self._processes if self._stays_for_good(other)))

    def _stays_for_good(self, other: Generation) -> bool:
        return other.model.rules.pinned and other.state != "draining"

    def _lasting_conflict(self, model: Model) -> str:
        """Why no wait can help: the budget, the number or the exclusions, with pinned models alone."""
        pinned = [other for other in self._processes if self._stays_for_good(other)]
        beside = f" beside {_list_needs(pinned)}, which stay" if pinned else ""
        if excluded := [other.name for other in pinned if _excludes(model, other)]:
            return f"{model.name} cannot start while {', '.join(excluded)} runs, which is pinned."
        if sum(not other.will_rest for other in pinned) + 1 > self._num_slots:
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

    ASLEEP = 0
    CLAIMED = 1
    """It admits no requests, as its memory is promised to another model already."""
    DRAINING = 2
    """Or falling asleep."""
    CLAIMABLE = 3
    """It is ready and has had its time."""
    IN_ITS_TIME = 4
    NOT_READY = 5


@dataclass
class _Room:
    """Slots and memory: all that is left, or the part of one process."""

    slots: float
    memory: Need

    @classmethod
    def of_present(cls, process: Generation) -> Self:
        """The room that it takes now."""
        return cls(not process.is_asleep, process.need)

    @classmethod
    def of_staying(cls, process: Generation) -> Self:
        """The room that it takes in the end, which is less if it falls asleep now."""
        return cls(not process.will_rest, process.rest_need)

    def holds(self, need: Need) -> bool:
        return self.slots >= 1 and need.fits_in(self.memory)

    def take(self, part: "_Room") -> None:
        self.slots -= part.slots
        self.memory = self.memory.minus(part.memory)

    def give(self, part: "_Room") -> None:
        self.slots += part.slots
        self.memory = self.memory.plus(part.memory)

    def without(self, part: "_Room") -> "_Room":
        return _Room(self.slots - part.slots, self.memory.minus(part.memory))


def _excludes(model: Model, other: Generation) -> bool:
    """Whether the other one must stop, or fall asleep, before the model starts."""
    return other.name in model.excludes and not other.will_rest


def _growth(other: Generation, asleep: Need) -> int:
    """Memory of the machine that its sleep takes in addition."""
    return max(0, asleep.ram_bytes - other.need.ram_bytes)


def _list_needs(processes: Iterable[Generation]) -> str:
    return ", ".join(f"{each.name} ({_text(each.need)})" for each in processes)


def _text(need: Need) -> str:
    """`2.0 GiB` or `2.0 GiB and 10.0 GiB of GPU memory`."""
    ram = "any amount" if need.ram_bytes >= UNLIMITED else format_bytes(max(0, need.ram_bytes))
    if need.gpu_bytes <= 0 or need.gpu_bytes >= UNLIMITED:
        return ram
    return f"{ram} and {format_bytes(need.gpu_bytes)} of GPU memory"
