"""Decides which models start now, and which are stopped for them, in one plan for all waiting models.

This module imports only the standard library, and the plan itself changes no model. Models are placed in the
order in which they began to wait. Each placed model reserves its memory, and the processes that make room for
it. Models that are placed later get neither.

All models together may use the free memory and the memory that their processes hold, up to the budget. Each
process counts with its whole need. Otherwise memory that a start has not taken yet would be given away twice.

The first of these decisions that applies to a model is made. The functions that make them name their numbers:

1. `refuse`: pinned models leave no room for it, now or later.
2. `blocked`: a model that was placed before must not run beside it.
3. `start`: there is room beside all processes that stay. `wait` if that room is still being freed.
4. `wait`: a model that was placed before waits for memory, which must not go to this one.
5. `short`: other programs leave too little memory. After `memory_wait_s`, `refuse`.
6. `stop`: idle processes make room. `wait` if only others can, and until the time of each of these ends.

A model whose process sleeps is woken instead of started. When the plan places this model, its need
replaces that of the sleeping process. Sleeping processes take no slot, exclude no model, and stop first.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Literal, NamedTuple, Self

from base.wording import format_bytes
from router.scheduling.model import Model, ModelProcess
from router.scheduling.terms import NOTHING, UNLIMITED, Need, SchedulerLimits

_POLL_S: Final = 0.1
"""Seconds between two plans if a start waits only for memory."""
_SLOW_POLL_S: Final = 1.0
"""Seconds between two plans if processes must be stopped for a start. Memory may become free before."""


class Victim(NamedTuple):
    """A process that is stopped or put to sleep to make room for another model."""

    process: ModelProcess
    level: int = 0
    """The level at which the process is to sleep. If it is 0, the process is stopped."""

    @property
    def part(self) -> "_Room":
        """The room that becomes free when the process has stopped or is asleep."""
        part = _Room.of_staying(self.process)
        return part - _Room(0, self.process.levels[self.level]) if self.level else part


class Placement(NamedTuple):
    """The decision about one waiting model."""

    kind: Literal["start", "stop", "wait", "short", "blocked", "refuse"]
    """`start`: the model is started or woken. `stop`: the victims are stopped or put to sleep now. `short`:
    other programs leave too little memory, although the budget is large enough. `blocked`: the model must not
    start before a model that has waited longer."""
    victims: tuple[Victim, ...] = ()
    """For `stop`: the processes to stop. For `wait`: the processes that admit no requests from now on."""
    text: str = ""


class StartPlan:
    """A plan for one moment. `place` is called for each waiting model, for the longest wait first."""

    def __init__(
        self,
        generations: Iterable[ModelProcess],
        limits: SchedulerLimits,
        free: Need | None,
        now: float,
        settled_s: float,
    ) -> None:
        """
        Args:
            free: the memory that is free now. None if it is unknown.
            settled_s: when memory of ended processes is free. Before this time, only the budget counts.
        """
        self.due_s: float | None = None
        """The next time at which the plan may change without an event. None if there is no such time."""
        self._limits = limits
        self._free = free
        self._now = now
        self._settled_s = settled_s
        self._processes = list(generations)
        self._staying = [each for each in self._processes if not each.is_stopping]
        """The processes that will run once the plan so far is carried out."""
        self._excluded: set[str] = set()
        """Names of models that must not start before the models that were placed so far."""
        self._is_closed = False
        """Whether a model waits for memory. If so, no process is stopped for models that are placed later."""
        held = Need.sum(each.held for each in self._processes)
        self._memory = limits.budget if free is None else limits.budget.at_most(free.plus(held))
        """All memory that models may use now."""
        self._present = _Room(self._num_slots, self._memory)
        self._planned = _Room(self._num_slots, limits.budget if self._is_settling else self._memory)
        for each in self._processes:
            self._present -= _Room.of_present(each)
        for each in self._staying:
            self._planned -= _Room.of_staying(each)

    def has_room(self, model: Model) -> bool:
        """Whether a process of the model can start now beside all running processes."""
        return not self._has_conflict(model) and self._present.holds(model.need)

    def level_for(self, other: ModelProcess, spare_bytes: int | None = None) -> int:
        """The best level at which the process can sleep now. 0 if it cannot, or its weights have no room.

        It may take `spare_bytes` of the machine's memory to sleep, or if this is None, all free memory.
        """
        if other.state not in ("starting", "ready", "falling asleep", "waking"):
            return 0
        spare_bytes = max(0, self._present.memory.ram_bytes if spare_bytes is None else spare_bytes)
        fitting = (level for level, need in other.levels.items() if _growth(other, need) <= spare_bytes)
        return next(fitting, 0)

    def place(self, model: Model) -> Placement:
        """Decides about one model, and reserves the room that the model needs."""
        sleeper = model.sleeper
        if sleeper is None:
            return self._reserved(model, self._place(model))
        if sleeper not in self._staying:  # an earlier model stops it
            return Placement("blocked")
        # What the sleeping process holds counts as free for its own model. If the model is not started now,
        # the process still holds it. If the model may not start at all, the process stays as it is.
        self._processes.remove(sleeper)
        self._staying.remove(sleeper)
        self._present += _Room.of_present(sleeper)
        self._planned += _Room.of_staying(sleeper)
        placement = self._reserved(model, self._place(model))
        if placement.kind != "start":
            self._processes.append(sleeper)
            self._present -= _Room.of_present(sleeper)
        if placement.kind in ("refuse", "blocked"):
            self._staying.append(sleeper)
            self._planned -= _Room.of_staying(sleeper)
        return placement

    def _reserved(self, model: Model, placement: Placement) -> Placement:
        if placement.kind in ("refuse", "blocked"):
            return placement
        expected = ModelProcess(0, model, model.hungry_since_s)
        if placement.kind == "start":
            self._present -= _Room(1, model.need)
            self._processes.append(expected)
        else:
            self._excluded |= model.excludes
        self._planned -= _Room(1, model.need)
        self._staying.append(expected)
        return placement

    def _place(self, model: Model) -> Placement:
        # 1 comes first, as no wait would help.
        if text := self._lasting_conflict(model):
            if model.sleeper is not None:  # a new start may need less memory
                return Placement("stop", (Victim(model.sleeper),))
            return Placement("refuse", text=text)
        # 2 precedes 3: if this model started, the one before it would have to wait until it ends.
        if model.name in self._excluded:
            return Placement("blocked")
        # 3 precedes 4: what the models before need is reserved, so a start in the rest delays none of them.
        has_conflict = any(_excludes(model, other) for other in self._staying)
        if not has_conflict and self._planned.holds(model.need):
            return self._start(model)
        # 4 precedes 5: memory_wait_s does not run while the memory is another model's.
        if self._is_closed:
            return Placement("wait")
        # 5 precedes 6: no process is stopped in vain.
        if not self._can_suffice(model):
            return self._short(model)
        return self._replace(model)  # 6

    # With room

    def _start(self, model: Model) -> Placement:
        """3: starts the model at once, or waits until processes have ended and their memory is free."""
        if self._has_conflict(model):
            return Placement("wait")
        if self._present.holds(model.need):
            return Placement("start")
        if self._is_settling:
            self._present -= _Room(1, model.need)
            self._note_due(min(self._now + _POLL_S, self._settled_s))
        return Placement("wait")

    def _short(self, model: Model) -> Placement:
        """5: waits a limited time for memory that other programs use. After this time, refuses the model."""
        self._is_closed = True
        since_s = self._now if model.short_since_s is None else model.short_since_s
        end_s = since_s + self._limits.memory_wait_s
        if self._now >= end_s:
            return Placement("refuse", text=self._describe_shortage(model))
        self._note_due(min(self._now + _POLL_S, end_s))
        return Placement("short")

    # Without room

    def _replace(self, model: Model) -> Placement:
        """6: chooses the processes to stop for this model. If idle processes suffice, chooses only these.

        Processes that are starting, or whose models have waiting requests, are chosen last. They are stopped
        only after they have been ready.
        """
        candidates = [other for other in self._staying if not self._stays_for_good(other)]
        if self._free is not None:
            self._note_due(self._now + _SLOW_POLL_S)
        # The plan may change when a minimum stay or the patience for a waiting model ends.
        for other in candidates:
            self._note_due(other.since_s + self._limits.min_stay_s)
            self._note_due(self._claim_s(other, model))
        idle = [other for other in candidates if self._is_idle(other)]
        if (victims := self._choose(model, idle)) is not None:
            self._reserve(victims)
            return Placement("stop", tuple(victims))
        if (victims := self._choose(model, candidates)) is None:
            self._is_closed = True
            return Placement("wait")
        # These victims still serve. They are reserved, so that no later model counts on them, and those whose
        # time has ended admit no more requests.
        self._reserve(victims)
        ready = [each for each in victims if each.process.state == "ready"]
        claimed = [each for each in ready if self._claim_s(each.process, model) <= self._now]
        return Placement("wait", tuple(claimed))

    def _is_idle(self, other: ModelProcess) -> bool:
        """Whether the process can be stopped now without waiting. Keeps bounds 1 and 3 of the scheduler."""
        if other.state == "asleep":
            return True
        if other.state != "ready" or other.is_kept:
            return False
        if self._now < other.since_s + self._limits.min_stay_s:
            return False
        return not other.model.num_waiting or other.claimed_by is not None

    def _claim_s(self, other: ModelProcess, model: Model) -> float:
        """When `other` stops admitting requests, that is `max_wait_s` after it is ready and `model` waits.

        Keeps bound 2 of the scheduler.
        """
        return max(model.hungry_since_s, other.since_s) + self._limits.max_wait_s

    def _choose(self, model: Model, candidates: Sequence[ModelProcess]) -> list[Victim] | None:
        """Chooses the candidates that the model excludes, then the cheapest others until there is room.

        Candidates that should sleep fall asleep if that makes enough room. Otherwise they are stopped.
        Returns None if stopping all candidates does not make enough room.
        """

        def order(other: ModelProcess) -> tuple[bool, _Rank, float, float]:
            rank = self._rank(other, model)
            cost = 0.0 if rank is _Rank.ASLEEP else other.restart_cost(self._now)
            return not _excludes(model, other), rank, cost, other.idle_since_s

        if any(_excludes(model, other) and other not in candidates for other in self._staying):
            return None
        ordered = sorted(candidates, key=order)
        chosen = self._choose_first(model, self._with_levels(model, ordered))
        if chosen is not None:
            return chosen
        return self._choose_first(model, map(Victim, ordered))

    def _with_levels(self, model: Model, ordered: Iterable[ModelProcess]) -> Iterator[Victim]:
        """Gives each candidate a sleep level, so that all weights fit into the machine's memory."""
        aside = NOTHING if model.sleeper is None else model.sleeper.need  # the sleeper has it until it wakes
        present = self._present.memory.minus(aside)
        spare_bytes = min(self._planned.memory.minus(model.need).ram_bytes, present.ram_bytes)
        for other in ordered:
            level = self.level_for(other, spare_bytes) if other.model.rules.on_swap == "sleep" else 0
            if level:
                spare_bytes -= _growth(other, other.levels[level])
            yield Victim(other, level)

    def _choose_first(self, model: Model, ordered: Iterable[Victim]) -> list[Victim] | None:
        room = self._planned
        chosen: list[Victim] = []
        for victim in ordered:
            if not _excludes(model, victim.process) and room.holds(model.need):
                break
            chosen.append(victim)
            room += victim.part
        # A large victim that was chosen late may make earlier ones unnecessary.
        for victim in reversed(chosen[:-1]):
            if not _excludes(model, victim.process) and (room - victim.part).holds(model.need):
                chosen.remove(victim)
                room -= victim.part
        return chosen if room.holds(model.need) else None

    def _rank(self, other: ModelProcess, model: Model) -> "_Rank":
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
            self._planned += victim.part
            self._staying.remove(victim.process)

    # Sums

    def _has_conflict(self, model: Model) -> bool:
        """Whether a model that `model` excludes still has a process that is awake."""
        return any(other.name in model.excludes and other.state != "asleep" for other in self._processes)

    @property
    def _num_slots(self) -> float:
        return float("inf") if self._limits.max_running is None else self._limits.max_running

    @property
    def _is_settling(self) -> bool:
        return self._now < self._settled_s

    def _can_suffice(self, model: Model) -> bool:
        """Whether memory beside pinned models suffices, or may suffice after present starts and ends."""
        steady = ("ready", "asleep", "draining")
        is_clear = not self._is_settling and all(other.state in steady for other in self._processes)
        return not is_clear or model.need.fits_in(self._beside_pinned(self._memory))

    def _beside_pinned(self, memory: Need) -> Need:
        pinned = [other for other in self._processes if self._stays_for_good(other)]
        return memory.minus(Need.sum(other.need for other in pinned))

    def _stays_for_good(self, other: ModelProcess) -> bool:
        return other.model.rules.pinned and other.state != "draining"

    def _lasting_conflict(self, model: Model) -> str:
        """The reason why the model cannot start even if only pinned models run. Empty if there is none."""
        pinned = [other for other in self._processes if self._stays_for_good(other)]
        beside = f" beside the pinned {_list_needs(pinned)}" if pinned else ""
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
    """How early a candidate is stopped. The candidates with the lowest rank come first."""

    ASLEEP = 0
    CLAIMED = 1
    """The process admits no requests, because its memory is reserved for another model."""
    DRAINING = 2
    """The process drains or falls asleep."""
    CLAIMABLE = 3
    """The process has been ready for `max_wait_s`, so it may stop admitting requests."""
    IN_ITS_TIME = 4
    NOT_READY = 5


@dataclass(frozen=True, slots=True)
class _Room:
    """Slots and memory that are free, or that one process takes."""

    slots: float
    memory: Need

    @classmethod
    def of_present(cls, process: ModelProcess) -> Self:
        """The room that the process takes now."""
        return cls(not process.is_asleep, process.need)

    @classmethod
    def of_staying(cls, process: ModelProcess) -> Self:
        """The room that the process will take after its present change, for example once it is asleep."""
        return cls(not process.will_rest, process.rest_need)

    def holds(self, need: Need) -> bool:
        return self.slots >= 1 and need.fits_in(self.memory)

    def __add__(self, part: "_Room") -> "_Room":
        return _Room(self.slots + part.slots, self.memory.plus(part.memory))

    def __sub__(self, part: "_Room") -> "_Room":
        return _Room(self.slots - part.slots, self.memory.minus(part.memory))


def _excludes(model: Model, other: ModelProcess) -> bool:
    """Whether `other` must stop or fall asleep before the model starts."""
    return other.name in model.excludes and not other.will_rest


def _growth(other: ModelProcess, asleep: Need) -> int:
    """The machine's memory that the process takes in addition when it sleeps."""
    return max(0, asleep.ram_bytes - other.need.ram_bytes)


def _list_needs(processes: Iterable[ModelProcess]) -> str:
    return ", ".join(f"{each.name} ({_text(each.need)})" for each in processes)


def _text(need: Need) -> str:
    """The memory as text, such as `2.0 GiB` or `2.0 GiB and 10.0 GiB of GPU memory`."""
    ram = "any amount" if need.ram_bytes >= UNLIMITED else format_bytes(max(0, need.ram_bytes))
    if need.gpu_bytes <= 0 or need.gpu_bytes >= UNLIMITED:
        return ram
    return f"{ram} and {format_bytes(need.gpu_bytes)} of GPU memory"
