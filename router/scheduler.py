"""Decides which models run and which requests they get: a pure function of events, one after the other.

Knows no clock, no processes and no event loop: each event is a method that gets the time and returns actions.
The memory that is free now is read only while a model waits for its start.
Standard library only. `start_plan.py` decides which models are stopped for others.

A request holds a lease on its model from its admission until it leaves. Bounds, with L the longest time for
which a lease lasts, S the longest start and stop, W = max(max_wait_s, min_stay_s), and room for one model:

- A model is stopped for another one at the earliest min_stay_s after it became ready, so in T seconds there
  are at most T / min_stay_s + 1 swaps; if its requests leave no gap, at most T / W + 1.
- A model stops to admit requests at the latest W after another one begins to wait, or after its own start.
- With n models in use, a request is admitted within n * (W + L + S), however many requests come, or refused:
  models start in the order in which they began to wait, and one that was stopped for another begins to wait
  anew. Waits for a limit of concurrency, and for the pause after a failure, come on top.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from typing import Final

from router.model_record import ModelRecord
from router.scheduler_terms import (
    Action,
    Admit,
    GiveUp,
    ModelRules,
    ModelView,
    Need,
    RefusalKind,
    Refuse,
    SchedulerLimits,
    Start,
    StartBeside,
    Stop,
    StopBeside,
)
from router.start_plan import Placement, StartPlan

_SETTLE_S: Final = 2.0
"""After the end of a process, its memory may come back late: no other model is stopped for it meanwhile."""


class ModelScheduler:
    """All methods that take `now`, seconds of any clock, are events and return what is to be done, in order.

    Tickets are numbers that the caller chooses, each for one request.
    """

    def __init__(self, limits: SchedulerLimits, read_free: Callable[[], Need | None] = lambda: None) -> None:
        """
        Args:
            read_free: returns what is free now; None if the system does not tell: only the budget decides.
        """
        self._limits = limits
        self._models: dict[str, ModelRecord] = {}
        self._tickets: dict[int, ModelRecord] = {}
        self._read_free = read_free
        self._settled_s = -math.inf
        """When the memory of the processes that have ended counts as given back."""
        self._actions: list[Action] = []
        self._is_ending = False
        self._due_s: float | None = None

    # Events: models

    def set_models(self, rules: Mapping[str, ModelRules], now: float, restart: Collection[str] = ()) -> list[Action]:
        """Replaces the models.

        Args:
            restart: those whose process cannot go on: it admits nothing more and ends after its leases; the
                next start is that of the new entry.
        """
        before = self._models
        self._models = {name: before.get(name) or ModelRecord(name, rule, now) for name, rule in rules.items()}
        for name in before.keys() - rules.keys():
            self._remove(before[name], now)
        for name, record in before.items():
            if name not in rules:
                continue
            if name in restart and self._can_start_beside(record, rules[name], now):
                record.begin_beside(rules[name], now)
                self._actions.append(StartBeside(name))
            elif name in restart or record.is_removed:
                record.is_removed = False
                record.replace(rules[name], now)
                self._drain_process(record, now)
            else:
                record.rules = rules[name]
        for record in self._models.values():
            self._admit_waiting(record)
        return self._decide(now)

    def became_ready(self, model: str, now: float) -> list[Action]:
        """The started process answers requests."""
        record = self._models.get(model)
        if record is None or record.state != "starting":
            return []
        record.become_ready(now)
        self._admit_waiting(record)
        return self._decide(now)

    def took_over(self, model: str, now: float) -> list[Action]:
        """The process that was started beside the old one answers requests."""
        record = self._models.get(model)
        if record is None or record.beside != "starting" or record.state != "ready":
            return []
        record.take_over(now)
        if not record.old_leases:
            self._actions.append(StopBeside(model))
        self._admit_waiting(record)
        return self._decide(now)

    def beside_ended(self, model: str, reason: str | None, now: float) -> list[Action]:
        """The second process is gone; `reason` as of `ended`."""
        record = self._models.get(model)
        if record is None or not record.beside:
            return []
        for ticket in record.old_leases:
            del self._tickets[ticket]
        record.end_beside(reason)
        return self._settle(record, now)

    def crashed(self, model: str) -> list[Action]:
        """The process cannot answer any more, but is not gone yet: requests wait for the next one."""
        if (record := self._models.get(model)) is not None:
            record.has_crashed = record.state == "ready"
        return self._take_actions()

    def ended(self, model: str, reason: str | None, now: float, *, is_lasting: bool = False) -> list[Action]:
        """The process is gone, with all that it started.

        Args:
            reason: None if it was asked to stop.
            is_lasting: the same start would fail again.
        """
        record = self._models.get(model)
        if record is None or not record.has_process:
            return []
        has_failed_to_start = record.state == "starting"
        for ticket in record.leases:
            del self._tickets[ticket]
        if record.beside == "starting":
            record.promote()
            return self._settle(record, now)
        record.end_process(reason, now, is_lasting=is_lasting)
        if record.is_given_up:
            self._actions.append(GiveUp(model))
        if record.is_given_up or (has_failed_to_start and not record.will_restart):
            self._refuse_waiting(record, "failed", record.reason, record.retry_after_s(now))
        return self._settle(record, now)

    def unload(self, model: str, now: float) -> list[Action]:
        """Stops the model by hand: its leases end first, and requests that come or wait start it again."""
        record = self._models.get(model)
        if record is not None:
            self._drain_process(record, now)
        return self._decide(now)

    # Events: requests

    def arrive(self, ticket: int, model: str, now: float) -> list[Action]:
        """A request begins: it is admitted, refused, or waits until one of both or until it leaves."""
        record = self._known(ticket, model)
        if record is None:
            return self._take_actions()
        if record.is_backing_off(now) and not record.will_restart:
            self._refuse(ticket, "failed", record.reason, record.retry_after_s(now))
        elif record.has_free_lease:
            self._admit(ticket, record)
        elif record.is_full or len(record.waiting) >= self._limits.max_waiting:
            self._refuse(ticket, "overloaded", _overloaded(record), 1)
        else:
            return self._enqueue(ticket, record, record.waiting, now)
        return self._take_actions()

    def load(self, ticket: int, model: str, now: float) -> list[Action]:
        """As `arrive`, by hand: starts a model that has failed at once, and no limit of requests counts.

        Its admission says that the model is ready; it should leave at once.
        """
        record = self._known(ticket, model)
        if record is None:
            return self._take_actions()
        if record.is_admitting:
            self._admit(ticket, record)
            return self._take_actions()
        record.retry_s = min(record.retry_s, now)
        return self._enqueue(ticket, record, record.loads, now)

    def hold(self, ticket: int, model: str, *, is_old: bool = False) -> None:
        """A lease without a request, which counts for no limit of requests; none if the process has ended.

        Args:
            is_old: on the old process that ends beside the new one.
        """
        record = self._models.get(model)
        if record is not None and record.has_process:
            (record.old_leases if is_old else record.leases).add(ticket)
            record.holds.add(ticket)
            self._tickets[ticket] = record

    def leave(self, ticket: int, now: float) -> list[Action]:
        """A lease or a place in the queue ends; unknown tickets are ignored."""
        record = self._tickets.pop(ticket, None)
        if record is None:
            return []
        if ticket in record.leases or ticket in record.old_leases:
            return self._end_lease(ticket, record, now)
        was_first = record.is_first_waiter(ticket)
        record.waiting.pop(ticket, None)
        record.loads.pop(ticket, None)
        return self._decide(now) if was_first else []

    # Events: memory and time

    def measured(self, model: str, memory: Need, now: float, *, is_settled: bool = True) -> list[Action]:
        """Notes the memory of all the model's processes. The most while it is ready becomes its need.

        Args:
            is_settled: False while they may take more: until then the model needs at least its estimate.
        """
        record = self._models.get(model)
        if record is None or not record.has_process:
            return []
        record.note_memory(memory, self._limits.budget, is_settled=is_settled)
        return self._decide(now)

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        for record in self._models.values():
            if (end_s := record.ttl_end_s()) is not None and end_s <= now:
                self._drain_process(record, now)
            self._refuse_late(record, now)
        return self._decide(now)

    def next_tick_s(self, now: float) -> float | None:
        """Seconds until `tick` has something to do; None if only another event can change anything."""
        models, max_wait_s = self._models.values(), self._limits.max_wait_s
        ends = (end_s for each in models for end_s in (each.ttl_end_s(), each.patience_end_s(max_wait_s)))
        dues = [due_s for due_s in (self._due_s, *ends) if due_s is not None]
        return max(0.0, min(dues) - now) if dues else None

    def drain(self, now: float) -> list[Action]:
        """The router ends: refuses what waits and what comes, and stops each model after its leases."""
        self._is_ending = True
        for record in self._models.values():
            self._refuse_waiting(record, "shutting_down", _ENDING)
            self._drain_process(record, now)
        return self._decide(now)

    # View

    def view(self) -> dict[str, ModelView]:
        """All models, also those that were removed and still have a process."""
        return {name: record.view() for name, record in self._models.items()}

    def view_of(self, model: str) -> ModelView | None:
        """The model of this name; None if there is none."""
        record = self._models.get(model)
        return None if record is None else record.view()

    def is_admitting(self, model: str) -> bool:
        """Whether a request would reach the model at once, but for a limit of its own concurrency."""
        record = self._models.get(model)
        return record is not None and record.is_admitting

    def is_awaited(self, model: str) -> bool:
        """Whether only its requests keep another model waiting for its memory, or keep it from its stop."""
        record = self._models.get(model)
        is_to_stop = record is not None and (record.claimed_by is not None or record.state == "draining")
        return record is not None and is_to_stop and record.num_requests > 0

    # Requests

    def _known(self, ticket: int, model: str) -> ModelRecord | None:
        """The model of a new ticket; else the ticket is refused."""
        if ticket in self._tickets:
            raise ValueError(f"ticket {ticket} is in use")
        record = self._models.get(model)
        if self._is_ending:
            self._refuse(ticket, "shutting_down", _ENDING)
        elif record is None or record.is_removed:
            self._refuse(ticket, "removed", _removed(model))
        else:
            return record
        return None

    def _enqueue(self, ticket: int, record: ModelRecord, queue: dict[int, float], now: float) -> list[Action]:
        was_waited_for = record.num_waiting > 0
        queue[ticket] = now
        self._tickets[ticket] = record
        return [] if was_waited_for and queue is record.waiting else self._decide(now)

    def _end_lease(self, ticket: int, record: ModelRecord, now: float) -> list[Action]:
        record.holds.discard(ticket)
        if ticket in record.old_leases:
            record.old_leases.remove(ticket)
            if not record.old_leases:
                self._actions.append(StopBeside(record.name))
            return self._take_actions()
        record.leases.remove(ticket)
        record.idle_since_s = now
        self._admit_waiting(record)
        if record.leases:
            return self._take_actions()
        if record.state == "draining":
            self._stop(record, now)
        return self._decide(now)

    def _admit_waiting(self, record: ModelRecord) -> None:
        while record.loads and record.is_admitting:
            self._admit(record.loads.popitem(last=False)[0], record)
        while record.waiting and record.has_free_lease:
            self._admit(record.waiting.popitem(last=False)[0], record)

    def _admit(self, ticket: int, record: ModelRecord) -> None:
        record.leases.add(ticket)
        self._tickets[ticket] = record
        self._actions.append(Admit(ticket))

    def _refuse_waiting(
        self, record: ModelRecord, kind: RefusalKind, reason: str, retry_after_s: int | None = None
    ) -> None:
        for queue in (record.loads, record.waiting):
            for ticket in queue:
                del self._tickets[ticket]
                self._refuse(ticket, kind, reason, retry_after_s)
            queue.clear()

    def _refuse_late(self, record: ModelRecord, now: float) -> None:
        max_wait_s = self._limits.max_wait_s
        while (end_s := record.patience_end_s(max_wait_s)) is not None and end_s <= now:
            ticket, _ = record.waiting.popitem(last=False)
            del self._tickets[ticket]
            text = f"{record.name} was not ready within {max_wait_s:g} s (--max-wait)"
            reason = f"{text}: {record.reason}" if record.reason else f"{text}."
            self._refuse(ticket, "failed", reason, record.retry_after_s(now))

    def _refuse(self, ticket: int, kind: RefusalKind, reason: str, retry_after_s: int | None = None) -> None:
        self._actions.append(Refuse(ticket, kind, reason, retry_after_s))

    # Processes

    def _remove(self, record: ModelRecord, now: float) -> None:
        self._refuse_waiting(record, "removed", _removed(record.name))
        if record.has_process:
            record.is_removed = True
            self._models[record.name] = record
            self._drain_process(record, now)

    def _drain_process(self, record: ModelRecord, now: float) -> None:
        """Has it admit nothing more, and stops it when its leases have ended."""
        if record.state not in ("starting", "ready", "draining") or record.is_stopping:
            return
        if record.beside == "starting" and record.state != "draining":
            self._actions.append(StopBeside(record.name))
        record.begin_drain(now)
        if not record.leases:
            self._stop(record, now)

    def _stop(self, record: ModelRecord, now: float) -> None:
        record.begin_drain(now)
        record.is_stopping = True
        self._actions.append(Stop(record.name))

    def _can_start_beside(self, record: ModelRecord, rules: ModelRules, now: float) -> bool:
        """Whether a process of the changed model has room beside the old one, for which nobody waits."""
        if not (record.rules.may_overlap and rules.may_overlap):
            return False
        if record.state != "ready" or record.beside or record.has_crashed or record.is_removed or self._is_ending:
            return False
        if any(other.is_hungry for other in self._models.values()):
            return False
        plan = StartPlan(self._models.values(), self._limits, self._read_free(), now, self._settled_s)
        return plan.has_room_beside(rules)

    def _settle(self, record: ModelRecord, now: float) -> list[Action]:
        """A process is gone; its memory may come back late."""
        self._settled_s = now + min(_SETTLE_S, self._limits.memory_wait_s)
        if record.is_removed and not record.has_process:
            del self._models[record.name]
        return self._decide(now)

    # Decision

    def _decide(self, now: float) -> list[Action]:
        """Starts and stops models for those that wait; the last step of every event that can change this."""
        read_free = cache(self._read_free)
        has_changed = True
        while has_changed:
            self._due_s = None
            hungry = [] if self._is_ending else self._collect_hungry(now)
            self._release_claims({record.name for record in hungry})
            has_changed = bool(hungry) and self._place(hungry, read_free(), now)
        return self._take_actions()

    def _collect_hungry(self, now: float) -> list[ModelRecord]:
        """The models that wait for a start, longest first; notes when the pause of the others ends."""
        hungry = []
        for record in self._models.values():
            if record.is_hungry:
                if record.is_backing_off(now):
                    self._note_due(record.retry_s)
                else:
                    hungry.append(record)
            else:
                record.short_since_s = None
        return sorted(hungry, key=lambda record: record.hungry_since_s)

    def _release_claims(self, hungry: Collection[str]) -> None:
        for record in self._models.values():
            if record.claimed_by is not None and record.claimed_by not in hungry:
                record.claimed_by = None
                self._admit_waiting(record)

    def _place(self, hungry: Iterable[ModelRecord], free: Need | None, now: float) -> bool:
        """Returns whether a model was started, stopped or refused: others may be placed differently then."""
        plan = StartPlan(self._models.values(), self._limits, free, now, self._settled_s)
        has_changed = False
        for record in hungry:
            placement = plan.place(record)
            self._carry_out(record, placement, now)
            has_changed |= placement.kind in ("start", "stop", "refuse")
        self._note_due(plan.due_s)
        return has_changed

    def _carry_out(self, record: ModelRecord, placement: Placement, now: float) -> None:
        is_short = placement.kind == "short"
        if not is_short or record.short_since_s is None:
            record.short_since_s = now if is_short else None
        match placement.kind:
            case "start":
                record.begin_start(now)
                self._actions.append(Start(record.name))
            case "stop":
                for victim in placement.victims:
                    self._stop(victim, now)
            case "wait":
                for victim in placement.victims:
                    victim.claimed_by = record.name
            case "refuse":
                record.is_given_up = True  # from now on only a request starts it
                retry_after_s = max(1, round(self._limits.memory_wait_s))
                self._refuse_waiting(record, "no_room", placement.text, retry_after_s)

    def _note_due(self, time_s: float | None) -> None:
        if time_s is not None and (self._due_s is None or time_s < self._due_s):
            self._due_s = time_s

    def _take_actions(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions


_ENDING = "The server is shutting down."


def _removed(model: str) -> str:
    return f"The model `{model}` does not exist."


def _overloaded(record: ModelRecord) -> str:
    if record.is_full:
        return f"{record.name} has {record.rules.concurrency} requests already (concurrencyLimit)."
    return f"{len(record.waiting)} requests wait for {record.name} already (--max-waiting)."
