"""What the scheduler remembers: a model is a name that points to generations, each one life of one process.

Standard library only; no decisions about other models. Times are in seconds of the caller's clock.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from router.scheduling.terms import NOTHING, ModelRules, ModelView, Need, State
from startup.ground.processes.back_off import BackOff


class EntryMemory:
    """What a process of one entry of a model needs; its generations share it."""

    def __init__(self, estimate: Need) -> None:
        self.estimate = estimate
        self._peak: Need | None = None
        """The most memory seen while one of them was ready, at most the budget."""

    @property
    def expected(self) -> Need:
        return self._peak or self.estimate

    def note(self, memory: Need, budget: Need) -> None:
        """A model that grew above the budget may start alone."""
        self._peak = (memory if self._peak is None else self._peak.at_least(memory)).at_most(budget)


class Generation:
    """One process of one entry of a model, from its start until all of it is gone."""

    def __init__(self, number: int, model: "Model", now: float) -> None:
        self.number = number
        self.model = model
        self.state: Literal["starting", "ready", "draining"] = "starting"
        self.since_s = now
        """When the state began."""
        self.leases: set[int] = set()
        self.holds: set[int] = set()
        """Those of the leases that belong to no request."""
        self.is_stopping = False
        """Whether it was asked to stop; a draining one with leases was not yet."""
        self.has_crashed = False
        """Whether it has ended by itself, but not yet all that it has started."""
        self.claimed_by: str | None = None
        """The model that needs its memory; until then it admits no request."""
        self.idle_since_s = now
        """When its last lease ended or it became ready."""
        self._memory = model.memory
        self._used: Need | None = None
        """When it was measured last."""
        self._has_been_ready = False

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def num_requests(self) -> int:
        return len(self.leases) - len(self.holds)

    @property
    def is_admitting(self) -> bool:
        return self.state == "ready" and self.claimed_by is None and not self.has_crashed

    @property
    def is_end_awaited(self) -> bool:
        """Whether only its requests keep another model waiting for its memory, or keep it from its stop."""
        return self.num_requests > 0 and (self.claimed_by is not None or self.state == "draining")

    def restart_cost(self, now: float) -> float:
        """What it costs to stop it: the seconds of the last start, less the longer it was not used."""
        idle_s = 0.0 if self.leases else now - self.idle_since_s
        return (self.model.last_start_s or 0.0) / (1.0 + max(0.0, idle_s))

    # Memory

    @property
    def need(self) -> Need:
        """The most memory that was seen; before, the estimate."""
        return self._memory.expected.at_least(self._used or NOTHING)

    @property
    def held(self) -> Need:
        """What it has taken, as far as is known: at most its need.

        During a start that is nothing: the process may still take all of its need, even after it was asked to
        stop.
        """
        if not self._has_been_ready:
            return NOTHING
        return self.need if self._used is None else self._used

    def note_memory(self, memory: Need, budget: Need, *, is_settled: bool) -> None:
        """What it uses now, if it was ready."""
        if not self._has_been_ready:
            return
        self._used = memory
        if is_settled and self.state == "ready":
            self._memory.note(memory, budget)

    # Changes

    def become_ready(self, now: float) -> None:
        self._has_been_ready = True
        self.idle_since_s = now
        self._enter("ready", now)

    def begin_drain(self, now: float) -> None:
        if self.state != "draining":
            self._enter("draining", now)

    def _enter(self, state: Literal["ready", "draining"], now: float) -> None:
        self.state = state
        self.since_s = now
        self.claimed_by = None


class Model:
    """One name, its present entry, and who waits for it."""

    def __init__(self, name: str, rules: ModelRules, now: float) -> None:
        self.name = name
        self.rules = rules
        self.memory = EntryMemory(rules.need)
        self.current: Generation | None = None
        """The generation that gets the requests; one that drains stays until it has ended."""
        self.next: Generation | None = None
        """One of the changed entry, which starts beside the current one and takes over when it is ready."""
        self.waiting: OrderedDict[int, float] = OrderedDict()
        """Tickets of requests in the order of their arrival, with its time."""
        self.loads: OrderedDict[int, float] = OrderedDict()
        """Tickets of loads by hand. They end when the model is ready, so no limit concerns them."""
        self.last_start_s: float | None = None
        self.num_starts = 0
        self.short_since_s: float | None = None
        """Since when only memory that is not really free delays its start."""
        self.reason = ""
        self.retry_s = -math.inf
        """When it may start again after a failure."""
        self.is_given_up = False
        """Whether only a request starts it again after a failure."""
        self._has_failed = False
        self._ended_s = now
        """Since when it has no current generation."""
        self._back_off = BackOff()

    # Questions

    @property
    def state(self) -> State:
        if self.current is not None:
            return self.current.state
        return "failed" if self._has_failed else "stopped"

    @property
    def excludes(self) -> frozenset[str]:
        """Models that must have no process when this one starts."""
        return self.rules.excludes if self.rules.may_overlap else self.rules.excludes | {self.name}

    @property
    def need(self) -> Need:
        """Of its next process."""
        return self.memory.expected

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + len(self.loads)

    @property
    def is_hungry(self) -> bool:
        """Whether somebody waits for its start, or it starts again by itself."""
        return self.current is None and bool(self.waiting or self.loads or self.will_restart)

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
        return max(oldest, self._ended_s, self.retry_s)

    @property
    def has_free_lease(self) -> bool:
        """Whether it can admit one more request."""
        limit = self.rules.concurrency
        return self.is_admitting and (limit is None or self._num_requests < limit)

    @property
    def is_admitting(self) -> bool:
        """Whether a request would reach it at once, but for its own limit of concurrency."""
        return self.current is not None and self.current.is_admitting

    @property
    def is_full(self) -> bool:
        """Whether it refuses one more request."""
        limit = self.rules.concurrency if self.rules.refuses_excess else None
        return limit is not None and self._num_requests + len(self.waiting) >= limit

    @property
    def _num_requests(self) -> int:
        return 0 if self.current is None else self.current.num_requests

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
        current = self.current
        if self.rules.ttl_s is None or self.rules.pinned or current is None or self.next is not None:
            return None
        if current.state != "ready" or current.leases or self.num_waiting:
            return None
        return current.idle_since_s + self.rules.ttl_s

    # Changes

    def note_start(self) -> None:
        """A generation starts."""
        self.num_starts += 1
        self.is_given_up = False
        self.short_since_s = None

    def note_ready(self, took_s: float) -> None:
        """A generation is ready."""
        self.last_start_s = took_s
        self.reason = ""
        self.retry_s = -math.inf

    def note_end(self, last: Generation, reason: str | None, now: float, *, is_lasting: bool) -> None:
        """Its current generation has ended without a next one; one that was not asked to end has failed."""
        self._ended_s = now
        self._has_failed = last.state != "draining"
        if not self._has_failed:
            return
        self.reason = reason or "Its process has ended without being asked to."
        self.retry_s = now + self._back_off.take_s(now - last.since_s if last.state == "ready" else 0.0)
        limit = self.rules.restart_limit
        self.is_given_up = limit is not None and (is_lasting or self._back_off.num_failures >= limit)

    def update(self, rules: ModelRules) -> None:
        """Its processes go on."""
        self.rules = rules
        self.memory.estimate = rules.need

    def replace(self, rules: ModelRules, now: float) -> None:
        """Its entry has changed: failures and measurements of the old one do not count any more."""
        self.rules = rules
        self.memory = EntryMemory(rules.need)
        self.reason = ""
        self.retry_s = -math.inf
        self._back_off.reset()
        if self._has_failed:
            self._has_failed = False
            self._ended_s = now

    def view(self, generations: Sequence[Generation]) -> ModelView:
        """`generations` are those of it that have not ended."""
        current = self.current
        needs = [each.need for each in generations]
        return ModelView(
            state=self.state,
            since_s=self._ended_s if current is None else current.since_s,
            num_running=sum(len(each.leases) for each in generations),
            num_waiting=self.num_waiting,
            need=Need.sum(needs) if needs else self.need,
            reason=self.reason,
            retry_at_s=self.retry_s if self.state == "failed" else None,
            num_starts=self.num_starts,
            last_start_s=self.last_start_s,
        )
