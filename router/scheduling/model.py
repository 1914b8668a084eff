"""The scheduler's state: models, and their generations. A generation is one process from start to end.

Imports only the standard library. No model decides about others. Times are seconds of the caller's clock.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Literal

from router.scheduling.terms import NOTHING, ModelRules, ModelView, Need, State
from startup.ground.processes.back_off import BackOff


class EntryMemory:
    """The memory that one entry of a model needs. All generations of the entry share it."""

    def __init__(self, rules: ModelRules) -> None:
        self.rules = rules
        """The rules of the entry, which contain the estimates."""
        self._peaks: dict[int, Need] = {}
        """Level of sleep (0: ready) -> the most memory that was measured there, capped at the budget."""

    @property
    def expected(self) -> Need:
        """The need of a process that is awake."""
        return self._peaks.get(0) or self.rules.need

    def asleep(self, level: int) -> Need:
        return self._peaks.get(level) or self.rules.asleep.get(level, self.expected)

    def note(self, memory: Need, budget: Need, level: int = 0) -> None:
        """Notes a measurement, capped at the budget. So a model above the budget can still start alone."""
        self._peaks[level] = self._peaks.get(level, memory).at_least(memory).at_most(budget)


class Generation:
    """One process of one entry of a model, from its start until all its processes have ended."""

    def __init__(self, number: int, model: "Model", now: float) -> None:
        self.number = number
        self.model = model
        self.state: _ProcessState = "starting"
        self.since_s = now
        """When the present state began."""
        self.leases: set[int] = set()
        self.holds: set[int] = set()
        """The tickets of leases that belong to no request."""
        self.is_stopping = False
        """Whether the process was asked to stop. A draining process with leases has not been asked yet."""
        self.has_crashed = False
        """Whether the first process has ended by itself, while some of its descendants still run."""
        self.claimed_by: str | None = None
        """The model that needs this process's memory. From then on the process admits no request."""
        self.level = 0
        """The level of sleep, from the order to fall asleep until the process is awake again. 0: awake."""
        self.is_asleep = False
        """Whether the process holds only the memory that it needs asleep. Stays True during a stop."""
        self.idle_since_s = now
        """When the last lease ended, or when the process became ready or awake."""
        self._memory = model.memory
        self._used: Need | None = None
        """The last measurement. None before the first measurement in the present state."""
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
        """Whether only requests keep this process from stopping, or from giving its memory to a model."""
        return self.num_requests > 0 and (self.claimed_by is not None or self.state in ("draining", "falling asleep"))

    @property
    def will_rest(self) -> bool:
        """Whether the process sleeps, or is falling asleep."""
        return self.is_asleep or (self.state == "falling asleep" and self.level > 0)

    @property
    def levels(self) -> Mapping[int, Need]:
        """Level of sleep -> memory there, for each level at which the process can sleep, best level first.

        Empty for a process of an earlier entry.
        """
        if self.model.current is not self or self._memory is not self.model.memory:
            return {}
        return {level: self._memory.asleep(level) for level in self.model.rules.asleep}

    def restart_cost(self, now: float) -> float:
        """The cost of stopping this process: the seconds of the last start, less after a long idle time."""
        idle_s = 0.0 if self.leases else now - self.idle_since_s
        return (self.model.last_start_s or 0.0) / (1.0 + max(0.0, idle_s))

    # Memory

    @property
    def need(self) -> Need:
        """The most memory that was measured, or the estimate before the first measurement.

        While the process falls asleep or wakes, the larger of its needs awake and asleep counts.
        """
        if self.is_asleep:
            return self.rest_need
        awake = self._memory.expected.at_least(self._used or NOTHING)
        return awake.at_least(self._memory.asleep(self.level)) if self.level else awake

    @property
    def rest_need(self) -> Need:
        """The need after the present change: `need`, or the need asleep if the process is falling asleep."""
        if not self.will_rest:
            return self.need
        return self._memory.asleep(self.level).at_least((self.is_asleep and self._used) or NOTHING)

    @property
    def held(self) -> Need:
        """The known memory that the process has taken. It is at most `need`.

        It is zero during a start, even after the process was asked to stop, because the process may still
        take all of its need.
        """
        if not self._has_been_ready:
            return NOTHING
        return self.need if self._used is None else self._used

    def note_memory(self, memory: Need, budget: Need, *, is_settled: bool) -> None:
        """Notes a measurement. Ignores it before the first readiness and during changes to and from sleep."""
        if not self._has_been_ready or (self.level and not self.is_asleep):
            return
        self._used = memory
        if self.state == "asleep" or (is_settled and self.state == "ready"):
            self._memory.note(memory, budget, self.level)

    # Changes

    def become_ready(self, now: float) -> None:
        self._has_been_ready = True
        self.idle_since_s = now
        self.level, self._used = 0, None
        self._enter("ready", now)

    def begin_rest(self, now: float, level: int = 0) -> None:
        """Stops admitting requests. The process falls asleep now at `level`, or after its leases if 0."""
        self._used, self.level = self.held, level
        self._enter("falling asleep", now)

    def become_asleep(self, now: float) -> None:
        self.is_asleep, self._used = True, None
        self._enter("asleep", now)

    def begin_wake(self, now: float) -> None:
        self._used, self.is_asleep = self.held, False
        self._enter("waking", now)

    def begin_drain(self, now: float) -> None:
        if self.state != "draining":
            self._enter("draining", now)

    def _enter(self, state: "_ProcessState", now: float) -> None:
        self.state = state
        self.since_s = now
        self.claimed_by = None


_ProcessState = Literal["starting", "ready", "falling asleep", "asleep", "waking", "draining"]


class Model:
    """A model: its name, its present entry, its processes, and its waiting requests."""

    def __init__(self, name: str, rules: ModelRules, now: float) -> None:
        self.name = name
        self.rules = rules
        self.memory = EntryMemory(rules)
        self.current: Generation | None = None
        """The generation that gets the requests. A draining generation stays here until it has ended."""
        self.next: Generation | None = None
        """The first generation of a changed entry. It starts beside `current`, and replaces it once ready."""
        self.waiting: OrderedDict[int, float] = OrderedDict()
        """Ticket of each waiting request -> its time of arrival, in the order of arrival."""
        self.loads: OrderedDict[int, float] = OrderedDict()
        """Ticket of each load by hand -> its time of arrival. A load ends at readiness and has no limit."""
        self.last_start_s: float | None = None
        self.num_starts = 0
        self.short_since_s: float | None = None
        """Since when other programs leave too little memory for the model, although the budget is enough."""
        self.reason = ""
        self.retry_s = -math.inf
        """The earliest time of the next start after a failure."""
        self.is_given_up = False
        """Whether the model has failed too often, so that only a request starts it again."""
        self._has_failed = False
        self._ended_s = now
        """Since when the model has no current generation, or only a sleeping one."""
        self._back_off = BackOff()

    # Questions

    @property
    def state(self) -> State:
        if self.current is not None:
            return self.current.state
        return "failed" if self._has_failed else "stopped"

    @property
    def excludes(self) -> frozenset[str]:
        """Models that must have no process when this model starts."""
        return self.rules.excludes if self.rules.may_overlap else self.rules.excludes | {self.name}

    @property
    def need(self) -> Need:
        """The need of the next process, or of the sleeping process while it wakes."""
        expected = self.memory.expected
        return expected if self.sleeper is None else expected.at_least(self.sleeper.need)

    @property
    def sleeper(self) -> Generation | None:
        """The model's process, if it sleeps and can be woken."""
        current = self.current
        return current if current is not None and current.state == "asleep" and not current.has_crashed else None

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + len(self.loads)

    @property
    def is_hungry(self) -> bool:
        """Whether a request waits for the model's start or waking, or the model restarts by itself."""
        has_none = self.current is None or self.sleeper is not None
        return has_none and bool(self.waiting or self.loads or self.will_restart)

    @property
    def will_restart(self) -> bool:
        """Whether the model has failed and is started again without a request."""
        return self.state == "failed" and self.rules.restart_limit is not None and not self.is_given_up

    @property
    def hungry_since_s(self) -> float:
        """Since when the oldest request waits for this start.

        After the model was stopped for another model, its waiting requests count as new. Otherwise this model
        would start again before the other model.
        """
        oldest = min((next(iter(queue.values())) for queue in (self.waiting, self.loads) if queue), default=-math.inf)
        return max(oldest, self._ended_s, self.retry_s)

    @property
    def has_free_lease(self) -> bool:
        """Whether the limit of concurrency allows one more request."""
        limit = self.rules.concurrency
        return self.is_admitting and (limit is None or self._num_requests < limit)

    @property
    def is_admitting(self) -> bool:
        """Whether the model's process admits requests now, if the limit of concurrency is ignored."""
        return self.current is not None and self.current.is_admitting

    @property
    def is_full(self) -> bool:
        """Whether the model refuses one more request."""
        limit = self.rules.concurrency if self.rules.refuses_excess else None
        return limit is not None and self._num_requests + len(self.waiting) >= limit

    @property
    def _num_requests(self) -> int:
        return 0 if self.current is None else self.current.num_requests

    def is_backing_off(self, now: float) -> bool:
        return self.state == "failed" and now < self.retry_s

    def patience_end_s(self, max_wait_s: float) -> float | None:
        """When the oldest request has waited too long. None if no request waits, or waits have no limit."""
        if self.rules.restart_limit is None or not self.waiting:
            return None
        return next(iter(self.waiting.values())) + max_wait_s

    def retry_after_s(self, now: float) -> int:
        """Whole seconds, at least 1, until a request may start the model again."""
        return max(1, math.ceil(self.retry_s - now)) if self.state == "failed" else 1

    def is_first_waiter(self, ticket: int) -> bool:
        return any(queue and next(iter(queue)) == ticket for queue in (self.waiting, self.loads))

    def ttl_end_s(self) -> float | None:
        """When the model is stopped because it is idle. None while it is in use, or if `ttl_s` is None."""
        return self._idle_end_s(self.rules.ttl_s, "ready", "asleep")

    def idle_sleep_end_s(self) -> float | None:
        """When the idle model falls asleep. None while it is in use, or if `idle_sleep_s` is None."""
        return self._idle_end_s(self.rules.idle_sleep_s, "ready")

    def _idle_end_s(self, limit_s: float | None, *states: State) -> float | None:
        current = self.current
        if limit_s is None or self.rules.pinned or current is None or self.next is not None:
            return None
        if current.state not in states or current.leases or self.num_waiting:
            return None
        return current.idle_since_s + limit_s

    # Changes

    def note_start(self) -> None:
        """Called when a generation starts."""
        self.num_starts += 1
        self.is_given_up = False
        self.short_since_s = None

    def note_ready(self, took_s: float) -> None:
        """Called when a generation is ready, `took_s` after its start."""
        self.last_start_s = took_s
        self.reason = ""
        self.retry_s = -math.inf

    def note_sleep(self, now: float) -> None:
        """Called when the generation has fallen asleep. From then on, waiting requests count as new."""
        self._ended_s = now

    def note_end(self, last: Generation, reason: str | None, now: float, *, is_lasting: bool) -> None:
        """Called after the end of `current` if there is no `next`. An end without a stop is a failure."""
        self._ended_s = now
        self._has_failed = last.state in ("starting", "ready")
        if last.state != "draining":
            self.reason = reason or "Its process has ended without being asked to."
        if not self._has_failed:
            return
        self.retry_s = now + self._back_off.take_s(now - last.since_s if last.state == "ready" else 0.0)
        limit = self.rules.restart_limit
        self.is_given_up = limit is not None and (is_lasting or self._back_off.num_failures >= limit)

    def update(self, rules: ModelRules) -> None:
        """Takes new rules. The processes continue."""
        self.rules = self.memory.rules = rules

    def replace(self, rules: ModelRules, now: float) -> None:
        """Takes the rules of a changed entry. Forgets the failures and measurements of the old entry."""
        self.rules = rules
        self.memory = EntryMemory(rules)
        self.reason = ""
        self.retry_s = -math.inf
        self._back_off.reset()
        if self._has_failed:
            self._has_failed = False
            self._ended_s = now

    def view(self, generations: Sequence[Generation]) -> ModelView:
        """Describes the model. `generations` are its generations that have not ended."""
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
