"""Which models may start now, and which are stopped for them: one decision for all that wait for a start.

Standard library only; changes nothing. The models are placed one after the other, in the order in which they
began to wait. Each one reserves its memory and its victims, so that a later one does not count on them.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from base.wording import format_bytes
from startup.router.memory_room import READING_VALID_S, FreeMemory, Ledger
from startup.router.model_record import ModelRecord
from startup.router.scheduler_terms import NOTHING, UNLIMITED, Need, SchedulerLimits

_POLL_S: Final = 0.1
"""How often the free memory is read while a start waits for nothing else."""
_UNANSWERED_S: Final = 1.0
_SETTLE_S: Final = 2.0
"""After the end of a process, its memory may come back late: no other model is stopped for it meanwhile."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What becomes of one model that waits for its start."""

    kind: Literal["start", "stop", "wait", "short", "blocked", "refuse"]
    """`stop`: stop the victims now. `short`: only memory that is not really free delays it.
    `blocked`: it must not run when a model starts that waits for longer."""
    victims: tuple[ModelRecord, ...] = ()
    """Of `stop`; of `wait`, those that admit no requests from now on."""
    text: str = ""


class StartPlan:
    """Created for one moment; `place` is called for each waiting model, the one that waits longest first."""

    def __init__(
        self, records: Collection[ModelRecord], limits: SchedulerLimits, memory: FreeMemory, now: float
    ) -> None:
        self.should_measure = False
        """Whether the free memory is to be read."""
        self.due_s: float | None = None
        """When time alone can change the plan."""
        self._limits = limits
        self._memory = memory
        self._now = now
        self._processes = [record for record in records if record.has_process]
        self._staying = {record.name: record for record in self._processes if not record.is_stopping}
        """Models that will run when all that is planned so far is done."""
        self._excluded: set[str] = set()
        """Models that must not start before those that were placed earlier."""
        self._is_closed = False
        """Whether an earlier model needs more than there is: no later one may have others stopped."""
        self._present = Ledger(limits.budget, self._num_slots, memory.free)
        for record in self._processes:
            self._present.take(self._charge(record), record.outstanding)
        self._planned = self._present.copy()
        for record in self._processes:
            if record.is_stopping:
                self._planned.give(self._charge(record), record.freed_by_stop)
        if self._is_settling:
            self._planned.free = None

    def place(self, record: ModelRecord) -> Placement:
        """Decides about one model, and reserves what it needs."""
        placement = self._place(record)
        if placement.kind in ("refuse", "blocked"):
            return placement
        if placement.kind != "start":
            self._excluded |= record.rules.excludes
        self._planned.take(self._charge(record), record.need)
        self._staying[record.name] = record
        return placement

    def _place(self, record: ModelRecord) -> Placement:
        if text := self._lasting_conflict(record):
            return Placement("refuse", text=text)
        if record.name in self._excluded:
            return Placement("blocked")
        if self._has_room(record, self._planned):
            return self._start(record)
        if self._is_closed:
            return Placement("wait")
        if not self._memory.is_fresh(self._now) and not self._is_settling:
            return self._await_reading(record)
        if not self._memory_can_suffice(record):
            return self._short(record)
        return self._replace(record)

    # With room

    def _start(self, record: ModelRecord) -> Placement:
        if any(other.name in record.rules.excludes for other in self._processes):
            return Placement("wait")
        charge = self._charge(record)
        if not Ledger(self._present.budget, self._present.slots, None).holds(charge, NOTHING):
            return Placement("wait")  # until those that are stopping have ended
        if not self._memory.is_fresh(self._now):
            return self._await_reading(record)
        if not self._present.holds(charge, record.need):
            return self._short(record)
        self._present.take(charge, record.need)
        self._processes.append(record)
        return Placement("start")

    def _await_reading(self, record: ModelRecord) -> Placement:
        """Without a reading nothing is decided, neither about this model nor about victims of later ones."""
        self._is_closed = True
        self._measure_from(self._now)
        return self._bounded_wait(record)

    def _short(self, record: ModelRecord) -> Placement:
        self._is_closed = True
        self._present.take(self._charge(record), record.need)
        self._measure_from(self._memory.read_s + _POLL_S)
        if self._is_settling:
            self._note_due(self._settled_s)
        if self._memory_can_suffice(record):
            return Placement("wait")
        return self._bounded_wait(record)

    def _bounded_wait(self, record: ModelRecord) -> Placement:
        since_s = self._now if record.short_since_s is None else record.short_since_s
        end_s = since_s + self._limits.memory_wait_s
        if self._now >= end_s:
            return Placement("refuse", text=self._describe_shortage(record))
        self._note_due(end_s)
        return Placement("short")

    def _measure_from(self, time_s: float) -> None:
        """Has the free memory read at this time, unless a reading is under way."""
        if self._memory.asked_s is not None:
            time_s = max(time_s, self._memory.asked_s + _UNANSWERED_S)
        if self._now >= time_s:
            self.should_measure = True
            time_s = self._now + _UNANSWERED_S
        self._note_due(time_s)

    # Without room

    def _replace(self, record: ModelRecord) -> Placement:
        """Chooses the models that are stopped for this one: idle ones if they suffice."""
        candidates = [other for other in self._staying.values() if self._is_candidate(other)]
        if self._planned.free is not None and not record.need.fits_in(self._planned.free):
            self._note_due(self._memory.read_s + READING_VALID_S)
        for other in candidates:
            self._note_due(other.since_s + self._limits.min_stay_s)
            self._note_due(self._claim_s(other, record))
        idle = [other for other in candidates if self._is_idle(other)]
        if (victims := self._choose(record, idle)) is not None:
            self._reserve(victims)
            return Placement("stop", tuple(victims))
        if (victims := self._choose(record, candidates)) is None:
            return self._wait()
        self._reserve(victims)
        claimed = (other for other in victims if other.state == "ready" and self._claim_s(other, record) <= self._now)
        return Placement("wait", tuple(claimed))

    def _is_candidate(self, other: ModelRecord) -> bool:
        """Whether the other one's memory can be had, now or later.

        Those that start or wait for a start are counted on last, and stopped only when they have been ready.
        """
        return other.state == "draining" or not other.rules.pinned

    def _is_idle(self, other: ModelRecord) -> bool:
        """Whether it can be stopped now."""
        if other.state != "ready" or other.leases or self._now < other.since_s + self._limits.min_stay_s:
            return False
        return not other.num_waiting or other.claimed_by is not None

    def _claim_s(self, other: ModelRecord, record: ModelRecord) -> float:
        """When the other one stops to admit requests: both have then had their time."""
        return max(record.hungry_since_s, other.since_s) + self._limits.max_wait_s

    def _choose(self, record: ModelRecord, candidates: Iterable[ModelRecord]) -> list[ModelRecord] | None:
        """Of the candidates those that cost least and suffice; None if all together do not."""

        def order(other: ModelRecord) -> tuple[bool, bool, bool, float, float]:
            is_leaving = other.state == "draining" or other.claimed_by is not None
            is_claimable = other.state == "ready" and self._claim_s(other, record) <= self._now
            is_late = other.state != "ready"
            return not is_leaving, not is_claimable, is_late, other.restart_cost(self._now), other.idle_since_s

        ledger = self._planned.copy()
        left = dict(self._staying)
        chosen: list[ModelRecord] = []
        ordered = sorted(candidates, key=order)
        must = [other for other in ordered if other.name in record.rules.excludes]
        for other in [*must, *(other for other in ordered if other.name not in record.rules.excludes)]:
            if len(chosen) >= len(must) and self._fits(record, ledger, left):
                break
            chosen.append(other)
            ledger.give(self._charge(other), other.freed_by_stop)
            del left[other.name]
        if not self._fits(record, ledger, left):
            return None
        return self._without_needless(record, chosen, ledger, left)

    def _without_needless(
        self, record: ModelRecord, chosen: list[ModelRecord], ledger: Ledger, left: dict[str, ModelRecord]
    ) -> list[ModelRecord]:
        """A large one that was chosen late may have made earlier ones needless."""
        for other in reversed(chosen[:-1]):
            charge, held = self._charge(other), other.freed_by_stop
            ledger.take(charge, held)
            left[other.name] = other
            if self._fits(record, ledger, left):
                chosen.remove(other)
            else:
                ledger.give(charge, held)
                del left[other.name]
        return chosen

    def _reserve(self, victims: Iterable[ModelRecord]) -> None:
        for other in victims:
            self._planned.give(self._charge(other), other.freed_by_stop)
            del self._staying[other.name]

    def _wait(self) -> Placement:
        """Something must change first; what there is is reserved for this model."""
        self._is_closed = True
        return Placement("wait")

    # Sums

    def _has_room(self, record: ModelRecord, ledger: Ledger) -> bool:
        return self._fits(record, ledger, self._staying)

    def _fits(self, record: ModelRecord, ledger: Ledger, running: Mapping[str, ModelRecord]) -> bool:
        if not record.rules.excludes.isdisjoint(running):
            return False
        return ledger.holds(self._charge(record), record.need)

    def _charge(self, record: ModelRecord) -> Need:
        """What counts against the budget: a model that was measured may take all of it, but not more."""
        return record.need if record.is_estimate else record.need.at_most(self._limits.budget)

    @property
    def _num_slots(self) -> float:
        return float("inf") if self._limits.max_running is None else self._limits.max_running

    @property
    def _settled_s(self) -> float:
        end_s = self._memory.last_end_s
        return -float("inf") if end_s is None else end_s + min(_SETTLE_S, self._limits.memory_wait_s)

    @property
    def _is_settling(self) -> bool:
        return self._now < self._settled_s

    def _memory_can_suffice(self, record: ModelRecord) -> bool:
        """Whether really free memory and all that may be stopped are enough."""
        if self._memory.free is None:
            return True
        room = self._memory.free
        for other in self._processes:
            room = room.minus(other.outstanding) if self._stays_for_good(other) else room.plus(other.freed_by_stop)
        return record.need.fits_in(room)

    def _stays_for_good(self, other: ModelRecord) -> bool:
        return other.rules.pinned and other.state != "draining"

    def _lasting_conflict(self, record: ModelRecord) -> str:
        """Why no wait can help: the budget, the number or the exclusions, with pinned models alone."""
        pinned = [other for other in self._processes if self._stays_for_good(other)]
        beside = f" beside {_list_needs(pinned)}, which stay" if pinned else ""
        if excluded := [other.name for other in pinned if other.name in record.rules.excludes]:
            return f"{record.name} cannot start while {', '.join(excluded)} runs, which is pinned."
        if len(pinned) + 1 > self._num_slots:
            return f"{record.name} cannot start{beside}: at most {self._limits.max_running} models run (--max-running)."
        room = self._limits.budget
        for other in pinned:
            room = room.minus(self._charge(other))
        if not self._charge(record).fits_in(room):
            return (
                f"{record.name} needs {_text(record.need)}, which the budget of {_text(self._limits.budget)} "
                f"does not have{beside} (--memory-budget)."
            )
        return ""

    def _describe_shortage(self, record: ModelRecord) -> str:
        free = "an unknown amount" if self._memory.free is None else _text(self._memory.free)
        text = f"{record.name} needs {_text(record.need)}, but {free} of memory is free"
        if self._processes:
            text += f"; running: {_list_needs(self._processes)}"
        if outstanding := _sum(other.outstanding for other in self._processes):
            text += f", of which {_text(outstanding)} are not taken yet"
        return text + f". Waited {self._limits.memory_wait_s:g} s."

    def _note_due(self, time_s: float) -> None:
        if time_s > self._now and (self.due_s is None or time_s < self.due_s):
            self.due_s = time_s


def _sum(needs: Iterable[Need]) -> Need | None:
    """None if there is nothing."""
    total = NOTHING
    for need in needs:
        total = total.plus(need)
    return total if any(total) else None


def _list_needs(records: Iterable[ModelRecord]) -> str:
    return ", ".join(f"{record.name} ({_text(record.need)})" for record in records)


def _text(need: Need) -> str:
    """`2.0 GiB` or `2.0 GiB and 10.0 GiB of GPU memory`."""
    ram = "any amount" if need.ram_bytes >= UNLIMITED else format_bytes(max(0, need.ram_bytes))
    if need.gpu_bytes <= 0 or need.gpu_bytes >= UNLIMITED:
        return ram
    return f"{ram} and {format_bytes(need.gpu_bytes)} of GPU memory"
