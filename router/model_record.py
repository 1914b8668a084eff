"""What the scheduler remembers of one model: its state, who uses it, who waits for it, what it needs.

Standard library only; no decisions about other models.
"""

import math
from collections import OrderedDict
from typing import Literal

from router.scheduler_terms import NOTHING, ModelRules, ModelView, Need, State
from startup.ground.processes.back_off import BackOff


class ModelRecord:
    """One model. Times are in seconds of the caller's clock."""

    def __init__(self, name: str, rules: ModelRules, now: float) -> None:
        self.name = name
        self.rules = rules
        self.state: State = "stopped"
        self.since_s = now
        """When the state began."""
        self.leases: set[int] = set()
        self.holds: set[int] = set()
        """Those of the leases that belong to no request."""
        self.waiting: OrderedDict[int, float] = OrderedDict()
        """Tickets of requests in the order of their arrival, with its time."""
        self.loads: OrderedDict[int, float] = OrderedDict()
        """Tickets of loads by hand. They end when the model is ready, so no limit concerns them."""
        self.is_stopping = False
        """Whether its process was asked to stop; a draining one with leases was not yet."""
        self.has_crashed = False
        """Whether its process has ended by itself, but not yet all that it has started."""
        self.is_removed = False
        """Whether it has only its old process left."""
        self.claimed_by: str | None = None
        """The model that needs its memory; until then it admits no request."""
        self.idle_since_s = now
        """When its last lease ended or it became ready."""
        self.last_start_s: float | None = None
        self.num_starts = 0
        self.short_since_s: float | None = None
        """Since when only memory that is not really free delays its start."""
        self.reason = ""
        self.retry_s = -math.inf
        """When it may start again after a failure."""
        self.is_given_up = False
        """Whether only a request starts it again after a failure."""
        self.beside: Literal["", "starting", "ending"] = ""
        """A second process, after a change of its entry: the new one starts, or the old one ends."""
        self.old_leases: set[int] = set()
        """Those on the old process that ends."""
        self._beside_since_s = now
        self._back_off = BackOff()
        self._current: Need | None = None
        """What its process has used when it was measured last."""
        self._peak: Need | None = None
        self._old_need: Need | None = None
        """Of the process whose entry has changed since."""
        self._has_been_ready = False

    # Questions

    @property
    def has_process(self) -> bool:
        return self.state in ("starting", "ready", "draining") or bool(self.beside)

    @property
    def num_requests(self) -> int:
        return len(self.leases) - len(self.holds)

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + len(self.loads)

    @property
    def is_hungry(self) -> bool:
        """Whether somebody waits for its start, or it starts again by itself, and it has no process."""
        return not self.has_process and bool(self.waiting or self.loads or self.will_restart)

    @property
    def will_restart(self) -> bool:
        """Whether it has failed and is started again without a request."""
        return self.state == "failed" and self.rules.restart_limit is not None and not self.is_given_up

    @property
    def hungry_since_s(self) -> float:
        """Since when its oldest waiter waits for this start.

        Who waited while an earlier process of the model was stopped for another model begins anew: else the
        model would be started again before the one for which it was stopped.
        """
        oldest = min((next(iter(queue.values())) for queue in (self.waiting, self.loads) if queue), default=-math.inf)
        return max(oldest, self.since_s, self.retry_s)

    @property
    def has_free_lease(self) -> bool:
        """Whether it can admit one more request."""
        limit = self.rules.concurrency
        return self.is_admitting and (limit is None or self.num_requests < limit)

    @property
    def is_admitting(self) -> bool:
        return self.state == "ready" and self.claimed_by is None and not self.has_crashed

    @property
    def is_full(self) -> bool:
        """Whether it refuses one more request."""
        limit = self.rules.concurrency if self.rules.refuses_excess else None
        return limit is not None and self.num_requests + len(self.waiting) >= limit

    def is_backing_off(self, now: float) -> bool:
        return self.state == "failed" and now < self.retry_s

    def patience_end_s(self, max_wait_s: float) -> float | None:
        """When its oldest request has waited too long; None if none waits, or they wait without a limit."""
        if self.rules.restart_limit is None or not self.waiting:
            return None
        return next(iter(self.waiting.values())) + max_wait_s

    def retry_after_s(self, now: float) -> int:
        """Whole seconds until a request may start it again, at least 1."""
        return max(1, math.ceil(self.retry_s - now)) if self.state == "failed" else 1

    def is_first_waiter(self, ticket: int) -> bool:
        return any(queue and next(iter(queue)) == ticket for queue in (self.waiting, self.loads))

    def ttl_end_s(self) -> float | None:
        """When it is stopped because nobody has used it; None while it is used or has no such limit."""
        if self.rules.ttl_s is None or self.rules.pinned or self.state != "ready" or self.leases or self.num_waiting:
            return None
        if self.beside:
            return None
        return self.idle_since_s + self.rules.ttl_s

    def restart_cost(self, now: float) -> float:
        """What it costs to stop it: the seconds of its last start, less the longer it was not used."""
        idle_s = 0.0 if self.leases else now - self.idle_since_s
        return (self.last_start_s or 0.0) / (1.0 + max(0.0, idle_s))

    # Memory

    @property
    def need(self) -> Need:
        """The most memory seen while it was ready; until then the estimate."""
        if self.beside:
            own = self._peak or self.rules.need
            own = own.at_least(self._current) if self._current and self.beside == "ending" else own
            return own.plus(self._old_need or NOTHING)
        expected = self._old_need or self._peak or self.rules.need
        return expected if self._current is None else expected.at_least(self._current)

    @property
    def held(self) -> Need:
        """What its process has taken, as far as is known: at most its need.

        During a start that is nothing: the process may still take all of its need, even after it was asked to
        stop.
        """
        if not self._has_been_ready:
            return NOTHING
        if self.beside == "starting":
            return self._old_need or NOTHING
        return self.need if self.beside or self._current is None else self._current

    def note_memory(self, memory: Need, budget: Need, *, is_settled: bool = True) -> None:
        """What its processes use now, if it was ready; a model that grew above the budget may start alone."""
        if not self._has_been_ready:
            return
        self._current = memory
        if is_settled and self.state == "ready" and (self._old_need is None or self.beside == "ending"):
            most = memory if self._peak is None else self._peak.at_least(memory)
            self._peak = most.at_most(budget)

    # Changes

    def begin_start(self, now: float) -> None:
        self.num_starts += 1
        self.is_given_up = False
        self.is_stopping = False
        self.short_since_s = None
        self._current = None
        self._has_been_ready = False
        self._enter("starting", now)

    def become_ready(self, now: float) -> None:
        self.last_start_s = now - self.since_s
        self._has_been_ready = True
        self.idle_since_s = now
        self.reason = ""
        self.retry_s = -math.inf
        self._enter("ready", now)

    def begin_beside(self, rules: ModelRules, now: float) -> None:
        """A process of the changed entry starts; the old one goes on."""
        self.replace(rules, now)
        self.num_starts += 1
        self.beside = "starting"
        self._beside_since_s = now

    def take_over(self, now: float) -> None:
        """The new process gets all further requests."""
        self.beside, self.old_leases, self.leases = "ending", self.leases, set()
        self._current = None
        self.has_crashed = False
        self.reason = ""
        self.last_start_s = now - self._beside_since_s
        self.idle_since_s = now
        self.since_s = now

    def promote(self) -> None:
        """The old process is gone, and the new one starts still, or ends."""
        self.beside, self._old_need, self._current = "", None, None
        self.leases.clear()
        self.holds.clear()
        self.has_crashed = self._has_been_ready = False
        if self.state == "ready":
            self._enter("starting", self._beside_since_s)

    def end_beside(self, reason: str | None) -> None:
        """The second process is gone: the old one, or the new one, which has failed for a reason."""
        if self.beside == "starting":
            self._peak, self.reason = self._old_need, reason or ""
        self.beside, self._old_need = "", None
        self.holds -= self.old_leases
        self.old_leases.clear()

    def begin_drain(self, now: float) -> None:
        if self.state != "draining":
            self._enter("draining", now)

    def end_process(self, reason: str | None, now: float, *, is_lasting: bool) -> None:
        """Its process is gone; a process that was not asked to end has failed."""
        was, since_s = self.state, self.since_s
        self.leases.clear()
        self.holds.clear()
        self.has_crashed = False
        self.is_stopping = False
        self._old_need = self._old_need if self.beside else None
        self._current = None
        if was == "draining":
            self._enter("stopped", now)
            return
        self.reason = reason or "Its process has ended without being asked to."
        self.retry_s = now + self._back_off.take_s(now - since_s if was == "ready" else 0.0)
        limit = self.rules.restart_limit
        self.is_given_up = limit is not None and (is_lasting or self._back_off.num_failures >= limit)
        self._enter("failed", now)

    def replace(self, rules: ModelRules, now: float) -> None:
        """Its entry has changed: failures and measurements of the old one do not count any more."""
        if self.has_process:
            self._old_need = self.need
        self.rules = rules
        self._peak = None
        self.reason = ""
        self.retry_s = -math.inf
        self._back_off.reset()
        if self.state == "failed":
            self._enter("stopped", now)

    def view(self) -> ModelView:
        return ModelView(
            state=self.state,
            since_s=self.since_s,
            num_running=len(self.leases) + len(self.old_leases),
            num_waiting=self.num_waiting,
            need=self.need,
            reason=self.reason,
            retry_at_s=self.retry_s if self.state == "failed" else None,
            num_starts=self.num_starts,
            last_start_s=self.last_start_s,
        )

    def _enter(self, state: State, now: float) -> None:
        self.state = state
        self.since_s = now
        self.claimed_by = None
