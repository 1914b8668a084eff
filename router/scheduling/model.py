"""The scheduler's state: models, and their generations. A generation is one process from start to end.

This module imports only the standard library. Times are seconds of the caller's clock. A process sleeps at
level 1 or 2. Level 0 means that the process is awake.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Literal

from router.scheduling.terms import NOTHING, ModelRules, ModelView, Need, Outcome, State
from startup.processes.back_off import BackOff


class EntryMemory:
    """The memory that one entry of a model needs. All processes of the entry share this object."""

    def __init__(self, rules: ModelRules) -> None:
        self.rules = rules
        """The rules of the entry. They contain the estimates of its memory."""
        self._peaks: dict[int, Need] = {}
        """Sleep level -> the most memory that was measured there, limited by the budget."""

    @property
    def expected(self) -> Need:
        """The memory that a process needs while it is awake."""
        return self._peaks.get(0) or self.rules.need

    def asleep(self, level: int) -> Need:
        return self._peaks.get(level) or self.rules.asleep.get(level, self.expected)

    def note(self, memory: Need, budget: Need, level: int = 0) -> None:
        """Notes a measurement, limited by the budget. So a model above the budget can still start alone."""
        peak = self._peaks.get(level, memory).at_least(memory)
        self._peaks[level] = peak.at_most(budget)

    def forget_peaks(self) -> None:
        self._peaks.clear()


class ModelProcess:
    """One process of a model's entry, from its start to its end. Leases are known by their tickets."""

    def __init__(self, number: int, model: "Model", now: float) -> None:
        self.number = number
        self.model = model
        self.state: _ProcessState = "starting"
        self.since_s = now
        """When the process entered its present state."""
        self.leases: set[int] = set()
        self.holds: set[int] = set()
        """The tickets of leases without a request. They keep the process from being stopped."""
        self.is_unloaded = False
        """Whether the user has unloaded the model."""
        self.is_stopping = False
        """Whether the process was asked to stop. This happens only after the last lease has ended."""
        self.has_crashed = False
        """Whether the first process has ended by itself while some of its descendants still run."""
        self.claimed_by: str | None = None
        """The name of the model that waits for this process's memory. If set, no requests are admitted."""
        self.level = 0
        """The sleep level, set when the process begins to fall asleep. 0 once the process is awake."""
        self.is_asleep = False
        """Whether the process holds only the memory that it needs asleep, even while it is being stopped."""
        self.idle_since_s = now
        """When the last lease ended, or when the process became ready or woke."""
        self._memory = model.memory
        self._used: Need | None = None
        """The last measurement. None if there was none in the present state."""
        self.ready_s: float | None = None
        """When the process last became ready or woke. None if it has never been ready."""
        self.num_sleeps = 0
        self.outcome = Outcome()
        """How the process has ended, or why it is being stopped instead of sleeping."""

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
    def is_kept(self) -> bool:
        """Whether a lease keeps the process from being stopped.

        A hold does so only until the user unloads the model, or until a request waits for the model.
        """
        if self.num_requests > 0:
            return True
        is_waited_for = self.model.current is self and self.model.num_waiting > 0 and not self.is_admitting
        return bool(self.holds) and not self.is_unloaded and not is_waited_for

    @property
    def has_sleep_pending(self) -> bool:
        """Whether the process is to sleep, but has not begun to, because requests still run."""
        return self.state == "falling asleep" and not self.level and not self.has_crashed

    @property
    def is_end_awaited(self) -> bool:
        """Whether the process is to stop or to sleep, and only its running requests delay this."""
        is_ending = self.claimed_by is not None or self.state in ("draining", "falling asleep")
        return is_ending and self.num_requests > 0

    @property
    def will_rest(self) -> bool:
        """Whether the process is asleep or is falling asleep."""
        return self.is_asleep or (self.state == "falling asleep" and self.level > 0)

    @property
    def levels(self) -> Mapping[int, Need]:
        """Sleep level -> the memory needed there, for each level of the model. The best level comes first.

        Empty if the model's entry has changed since the start of the process.
        """
        if self.model.current is not self or self._memory is not self.model.memory:
            return {}
        return {level: self._memory.asleep(level) for level in self.model.rules.asleep}

    def restart_cost(self, now: float) -> float:
        """The cost of stopping this process: the seconds of its model's last start, less if it is idle."""
        idle_s = 0.0 if self.leases else now - self.idle_since_s
        return (self.model.last_start_s or 0.0) / (1.0 + max(0.0, idle_s))

    # Memory

    @property
    def need(self) -> Need:
        """The most memory that was measured, or the estimate before the first measurement.

        While the process falls asleep or wakes, this is the larger of its needs awake and asleep.
        """
        if self.is_asleep:
            return self.rest_need
        awake = self._memory.expected.at_least(self._used or NOTHING)
        return awake.at_least(self._memory.asleep(self.level)) if self.level else awake

    @property
    def rest_need(self) -> Need:
        """The need after the present change: for a process that falls asleep, the need asleep."""
        if not self.will_rest:
            return self.need
        used = self._used if self.is_asleep else None
        return self._memory.asleep(self.level).at_least(used or NOTHING)

    @property
    def held(self) -> Need:
        """The memory that the process is known to have taken. It is at most `need`.

        It is zero until the process has been ready once, because a starting process may not have taken any of
        its need yet. This also applies if the process is asked to stop during its start.
        """
        if self.ready_s is None:
            return NOTHING
        return self.need if self._used is None else self._used

    def note_memory(self, memory: Need, budget: Need, *, is_settled: bool) -> None:
        """Notes a measurement. Measurements of a process that starts, falls asleep or wakes are ignored."""
        if self.ready_s is None or (self.level and not self.is_asleep):
            return
        self._used = memory
        if self.state == "asleep" or (is_settled and self.state == "ready"):
            self._memory.note(memory, budget, self.level)

    # Changes

    def become_ready(self, now: float) -> None:
        self.ready_s = self.idle_since_s = now
        self.level, self._used = 0, None
        self._enter("ready", now)

    def begin_rest(self, now: float, level: int = 0) -> None:
        """Stops admitting requests. `level` is 0 if the process can fall asleep only after its leases."""
        self._used, self.level = self.held, level
        self._enter("falling asleep", now)

    def cancel_rest(self) -> None:
        """Admits requests again. Called only while `has_sleep_pending`."""
        assert self.ready_s is not None
        self._enter("ready", self.ready_s)

    def become_asleep(self, now: float) -> None:
        self.is_asleep, self._used = True, None
        self.num_sleeps += 1
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
    """A model with its rules, its processes and its waiting requests."""

    def __init__(self, name: str, rules: ModelRules, now: float) -> None:
        self.name = name
        self.rules = rules
        self.memory = EntryMemory(rules)
        self.current: ModelProcess | None = None
        """The process that gets the requests. A process that drains stays here until it has ended."""
        self.next: ModelProcess | None = None
        """The first process of a changed entry. It starts beside `current`, and replaces it once ready."""
        self.waiting: OrderedDict[int, float] = OrderedDict()
        """Ticket of each waiting request -> its time of arrival. The oldest request is first."""
        self.loads: OrderedDict[int, float] = OrderedDict()
        """Ticket of each load by hand -> its time of arrival. A load waits until the model is ready."""
        self.last_start_s: float | None = None
        self.num_starts = 0
        self.short_since_s: float | None = None
        """Since when other programs leave too little memory for the model, although the budget is enough."""
        self.outcome = Outcome()
        """How the last start or process has ended. Only a process that becomes ready resets it."""
        self.retry_s = -math.inf
        """The earliest time at which the model may start again after a failure."""
        self._ended_s = now
        """Since when the model has no current process, or only a sleeping one."""
        self._back_off = BackOff()

    # Questions

    @property
    def state(self) -> State:
        if self.current is not None:
            return self.current.state
        return "failed" if self.outcome.has_failed else "stopped"

    @property
    def excludes(self) -> frozenset[str]:
        """Names of models that must have no process when this model starts."""
        return self.rules.excludes if self.rules.may_overlap else self.rules.excludes | {self.name}

    @property
    def need(self) -> Need:
        """The memory that the model needs when it starts or wakes next."""
        expected = self.memory.expected
        return expected if self.sleeper is None else expected.at_least(self.sleeper.need)

    @property
    def sleeper(self) -> ModelProcess | None:
        """The model's process if it is asleep and can be woken. None otherwise."""
        current = self.current
        if current is None or current.has_crashed or current.state != "asleep":
            return None
        return current

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + len(self.loads)

    @property
    def is_hungry(self) -> bool:
        """Whether the model waits to start or wake, for a request or because it restarts by itself."""
        is_wanted = self.will_restart or self.num_waiting > 0
        return is_wanted and (self.current is None or self.sleeper is not None)

    @property
    def can_sleep(self) -> bool:
        """Whether the user can put the model to sleep now. A request that waits would wake it at once."""
        if self.current is None or self.current.has_crashed:
            return False
        return self.current.state == "ready" and self.next is None and not self.num_waiting

    @property
    def will_restart(self) -> bool:
        """Whether the model has failed and will be started again without a request."""
        return self.current is None and self.outcome.kind == "failed" and self.rules.restart_limit is not None

    @property
    def hungry_since_s(self) -> float:
        """When the request that has waited longest for this start began to wait.

        When a model is stopped for another model, its waiting requests begin to wait again. Otherwise the
        model would start again before the other model (bound 4 of the scheduler).
        """
        firsts = [next(iter(queue.values())) for queue in (self.waiting, self.loads) if queue]
        oldest_s = min(firsts, default=-math.inf)
        return max(oldest_s, self._ended_s, self.retry_s)

    @property
    def has_free_lease(self) -> bool:
        """Whether the limit `concurrency` allows one more request."""
        limit = self.rules.concurrency
        return self.is_admitting and (limit is None or self._num_requests < limit)

    @property
    def is_admitting(self) -> bool:
        """Whether the model's process admits requests, apart from the limit `concurrency`."""
        return self.current is not None and self.current.is_admitting

    @property
    def is_full(self) -> bool:
        """Whether the model refuses a further request because of the limit `concurrency`."""
        limit = self.rules.concurrency if self.rules.refuses_excess else None
        return limit is not None and self._num_requests + len(self.waiting) >= limit

    @property
    def _num_requests(self) -> int:
        return 0 if self.current is None else self.current.num_requests

    def is_backing_off(self, now: float) -> bool:
        return self.state == "failed" and now < self.retry_s

    def patience_end_s(self, max_wait_s: float) -> float | None:
        """When the oldest request has waited too long. None if no request waits, or the wait has no limit."""
        if self.rules.restart_limit is None or not self.waiting:
            return None
        return next(iter(self.waiting.values())) + max_wait_s

    def retry_after_s(self, now: float) -> int:
        """Seconds until a request may start the model again. A whole number of at least 1."""
        return max(1, math.ceil(self.retry_s - now)) if self.state == "failed" else 1

    def is_first_waiter(self, ticket: int) -> bool:
        queues = [queue for queue in (self.waiting, self.loads) if queue]
        return any(next(iter(queue)) == ticket for queue in queues)

    def ttl_end_s(self) -> float | None:
        """When the idle model is stopped. None while it is in use, or if `ttl_s` is None."""
        return self._idle_end_s(self.rules.ttl_s, "ready", "asleep")

    def idle_sleep_end_s(self) -> float | None:
        """When the idle model falls asleep. None while it is in use, or if `idle_sleep_s` is None."""
        return self._idle_end_s(self.rules.idle_sleep_s, "ready")

    def _idle_end_s(self, limit_s: float | None, *states: State) -> float | None:
        current = self.current
        if limit_s is None or self.rules.pinned:
            return None
        if current is None or current.has_crashed or self.next is not None:
            return None
        if current.state not in states or current.leases or self.num_waiting:
            return None
        return current.idle_since_s + limit_s

    # Changes

    def note_ready(self, took_s: float) -> None:
        """Called when a process is ready. `took_s` is the duration of its start."""
        self.last_start_s = took_s
        self.outcome = Outcome()
        self.retry_s = -math.inf

    def note_sleep(self, now: float) -> None:
        """Called when the process has fallen asleep. Its waiting requests begin to wait again."""
        self._ended_s = now

    def forget_failure(self, now: float) -> None:
        """Called when the user stops the model or changes its entry. The model does not restart by itself."""
        if self.state == "failed":
            self._ended_s = now
        self.outcome = Outcome()

    def give_up(self) -> None:
        """Leaves the next start to a request."""
        if self.outcome.has_failed:
            self.outcome = self.outcome._replace(kind="given up")

    def note_end(self, last: ModelProcess, reason: str | None, now: float, *, is_lasting: bool) -> None:
        """Called when `current` has ended and there is no `next`.

        Each end is a failure unless the process was stopped on purpose, whatever it did at that time. After
        the failure of a process that slept, fell asleep or woke, the model may start without a pause.
        """
        self._ended_s = now
        if last.state == "draining":
            self.outcome = last.outcome
            return
        last.outcome = self.outcome = Outcome("failed", reason or "Its process has ended without being asked to.")
        served_s = 0.0 if last.ready_s is None else now - last.ready_s
        pause_s = self._back_off.take_s(served_s)
        self.retry_s = now + (pause_s if last.state in ("starting", "ready") else 0.0)
        limit = self.rules.restart_limit
        if limit is None:
            return
        if is_lasting or self._back_off.num_failures >= limit:
            self.give_up()

    def update(self, rules: ModelRules) -> None:
        """Replaces the rules. The processes continue."""
        self.rules = self.memory.rules = rules

    def replace(self, rules: ModelRules, now: float) -> None:
        """Takes the rules of a changed entry. Forgets the failures and measurements of the old entry."""
        self.rules = rules
        self.memory = EntryMemory(rules)
        self.retry_s = -math.inf
        self._back_off.reset()
        self.forget_failure(now)

    def view(self, generations: Sequence[ModelProcess]) -> ModelView:
        """The state of the model for lists. `generations` are its processes that have not ended."""
        current = self.current
        needs = [each.need for each in generations]
        return ModelView(
            state=self.state,
            since_s=self._ended_s if current is None else current.since_s,
            num_running=sum(len(each.leases) for each in generations),
            num_waiting=self.num_waiting,
            need=Need.sum(needs) if needs else self.need,
            outcome=self.outcome,
            retry_at_s=self.retry_s if self.state == "failed" else None,
            num_starts=self.num_starts,
            last_start_s=self.last_start_s,
        )
