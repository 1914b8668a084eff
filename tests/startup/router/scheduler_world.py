"""A world for the scheduler: processes, memory and clients that do at random what real ones do.

The world keeps its own books, of what it was told to do and of what it did, and compares after every step.
"""

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from startup.router.scheduler import Scheduler
from startup.router.scheduler_terms import (
    Action,
    Admit,
    MeasureFree,
    ModelRules,
    Need,
    Refuse,
    SchedulerLimits,
    Start,
    Stop,
)

_EPSILON = 1e-6


@dataclass
class Process:
    """The one process of a model."""

    model: str
    size: int
    is_ready: bool = False
    ready_s: float = 0.0
    is_asked_to_stop: bool = False
    must_end: bool = False
    """Its entry was changed or removed, it was unloaded, or the router ends."""
    memory: int = 0
    leases: set[int] = field(default_factory=set)


@dataclass
class Client:
    """One request, until it is answered or leaves."""

    model: str
    arrived_s: float
    is_load: bool = False
    process: Process | None = None


@dataclass(frozen=True)
class WorldOptions:
    """What may happen in a world."""

    num_models: int = 5
    budget: int | None = 10
    total: int | None = 12
    """Memory of the machine; None: the system does not tell what is free."""
    max_running: int | None = None
    max_waiting: int = 8
    has_excludes: bool = False
    has_failures: bool = True
    has_edits: bool = True
    is_plain: bool = False
    """Whether models have no rules of their own, and nothing happens by hand: the longest wait is bounded."""
    longest_start_s: float = 4.0
    longest_lease_s: float = 8.0
    late_memory_s: float = 1.0
    """How long the memory of an ended process may stay away."""

    @staticmethod
    def chosen_by(rng: random.Random) -> "WorldOptions":
        return WorldOptions(
            num_models=rng.choice((2, 3, 5, 8)),
            budget=rng.choice((None, 6, 10, 20)),
            total=rng.choice((None, 8, 12, 40)),
            max_running=rng.choice((None, None, 1, 2, 3)),
            max_waiting=rng.choice((3, 8, 50)),
            has_excludes=rng.random() < 0.4,
            has_failures=rng.random() < 0.7,
            has_edits=rng.random() < 0.7,
            late_memory_s=rng.choice((0.0, 1.0, 30.0)),
        )


class World:
    """Drives one scheduler; `step` lets one thing happen, `settle` lets all waiting ones have their end."""

    def __init__(self, seed: int, options: WorldOptions | None = None) -> None:
        self.rng = random.Random(seed)
        self.options = options or WorldOptions.chosen_by(self.rng)
        self.now = 1000.0
        self.num_steps = 0
        self.counts: dict[str, int] = {}
        """How often each action came: a world in which nothing happens proves nothing."""
        self.limits = SchedulerLimits(
            memory_budget_bytes=self.options.budget,
            max_running=self.options.max_running,
            max_wait_s=self.rng.choice((1.0, 5.0)),
            max_waiting=self.options.max_waiting,
            min_stay_s=self.rng.choice((0.0, 1.0, 2.0)),
            memory_wait_s=self.rng.choice((1.0, 10.0)),
        )
        self.names = [f"m{number}" for number in range(self.options.num_models)]
        self.rules: dict[str, ModelRules] = {}
        self.estimates: dict[str, int] = {}
        self.processes: dict[str, Process] = {}
        self.clients: dict[int, Client] = {}
        self.late: list[tuple[float, int]] = []
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        options = self.options
        by_hand = 0 if options.is_plain else 2
        self.weights = (30, 22, 40, 4, by_hand, 1 if options.has_failures else 0, 0.7 if options.has_edits else 0)
        """How often each thing of `step` happens."""
        self.longest_wait_s = 0.0
        self.is_fair = False
        """From then on nothing fails, and no new request comes."""
        self.is_ending = False
        self.failed_until: dict[str, float] = {}
        self._numbers = iter(range(1, 1 << 60))
        self.told_free = self._free()
        """The last reading that the scheduler got."""
        self.scheduler = Scheduler(self.limits, self.told_free, self.now)
        self._edit(self.names)

    @property
    def bound_s(self) -> float:
        """The longest wait in a plain world, by the scheduler's docstring."""
        longest_turn_s = max(self.limits.max_wait_s, self.limits.min_stay_s) + self.options.longest_lease_s
        return len(self.names) * (longest_turn_s + 2 * self.options.longest_start_s)

    # Steps

    def step(self) -> None:
        """One thing happens, then everything is compared."""
        self.num_steps += 1
        rng = self.rng
        happening = rng.choices(
            (self._arrive, self._leave, self._pass_time, self._measure, self._by_hand, self._crash, self._reload),
            weights=self.weights,
        )[0]
        happening()
        self._check()

    def settle(self) -> None:
        """Nothing new comes, nothing fails, memory comes back: every waiting request must have its end.

        The bound is that of the scheduler's docstring, with the pause after failures and the wait for memory.
        """
        self.is_fair = True
        longest_s = 2 * self.bound_s + len(self.names) * (self.limits.memory_wait_s + 2.0)
        limit_s = self.now + longest_s + self.options.late_memory_s + 64.0
        for ticket, client in list(self.clients.items()):
            if client.process is not None:
                self._later(
                    _some_seconds(self.rng, self.options.longest_lease_s), lambda ticket=ticket: self._end(ticket)
                )
        while any(client.process is None for client in self.clients.values()):
            assert self.now < limit_s, f"waits for ever: {self.clients}, {self.scheduler.view()}"
            self._pass_time()
            self._check()

    def end(self) -> None:
        """The router ends: nothing may be left."""
        self.is_ending = True
        for process in self.processes.values():
            process.must_end = True
        self._apply(self.scheduler.drain(self.now))
        ticket = next(self._numbers)
        self.clients[ticket] = Client(self.names[0], self.now)
        self._apply(self.scheduler.arrive(ticket, self.names[0], self.now))
        for ticket in list(self.clients):
            assert self.clients[ticket].process is not None, "a request waits while the router ends"
            self._end(ticket)
        limit_s = self.now + 100.0
        while self.processes:
            assert self.now < limit_s, f"runs for ever: {self.processes}"
            self._pass_time()
            self._check()
        assert self.scheduler.next_tick_s(self.now) is None
        assert not self.scheduler._tickets
        assert all(view.state in ("stopped", "failed") for view in self.scheduler.view().values())

    # Happenings

    def _arrive(self, model: str | None = None, *, is_load: bool = False) -> None:
        ticket = next(self._numbers)
        model = model or self.rng.choice([*self.names, *self.names[:2], "unknown"])
        before = self.scheduler.view().get(model)
        self.clients[ticket] = Client(model, self.now, is_load)
        event = self.scheduler.load if is_load else self.scheduler.arrive
        actions = event(ticket, model, self.now)
        for action in actions:
            if isinstance(action, Refuse) and action.ticket == ticket:
                if action.kind == "overloaded":
                    assert before is not None and before.num_waiting >= self.limits.max_waiting and not is_load
                if action.kind == "failed" and not is_load:
                    assert before is not None and before.state == "failed"
                    assert self.now < self.failed_until[model], "refused after the pause"
        self._apply(actions)
        if ticket in self.clients and self.clients[ticket].process is None and not is_load:
            assert len([c for c in self._waiting(model) if not c.is_load]) <= self.limits.max_waiting

    def _leave(self) -> None:
        """A client goes, whether it is admitted, waits, or was never known."""
        ticket = self.rng.choice([*self.clients, -1]) if self.rng.random() < 0.5 else -1
        self._end(ticket)

    def _pass_time(self) -> None:
        """To the next thing that is due, or a part of the way."""
        delay_s = self.scheduler.next_tick_s(self.now)
        tick_s = None if delay_s is None else self.now + delay_s
        self.agenda.sort(key=lambda item: item[:2])
        dues = [due_s for due_s in (tick_s, self.agenda[0][0] if self.agenda else None) if due_s is not None]
        target_s = min(dues, default=self.now + 1.0)
        if not self.is_fair and self.rng.random() < 0.3:
            self.now += (target_s - self.now) * self.rng.random()
            self._check_sleep()
            return
        if self.rng.random() < 0.1:
            self._check_sleep()
        self.now = max(self.now, target_s)
        if tick_s is not None and tick_s <= self.now:
            actions = self.scheduler.tick(self.now)
            again_s = self.scheduler.next_tick_s(self.now)
            assert again_s is None or again_s > 0, "ticks without a pause"
            self._apply(actions)
        else:
            _, _, happen = self.agenda.pop(0) if self.agenda else (0, 0, lambda: None)
            happen()

    def _check_sleep(self) -> None:
        """Until the next tick there is nothing to do: a tick before it would change nothing."""
        delay_s = self.scheduler.next_tick_s(self.now)
        early_s = self.now + (60.0 if delay_s is None else delay_s * self.rng.random() * (1 - _EPSILON))
        if delay_s == 0:
            return
        twin = copy.deepcopy(self.scheduler)
        actions = [action for action in twin.tick(early_s) if not isinstance(action, MeasureFree)]
        assert not actions, f"slept past {actions}, {early_s - self.now} before {delay_s}"

    def _measure(self) -> None:
        self.now += _EPSILON
        for name, process in list(self.processes.items()):
            if process.is_ready or self.rng.random() < 0.5:
                process.memory = process.size
                self._apply(self.scheduler.measured(name, Need(process.memory), self.now))
        self._tell_free(self._free(), self.now)

    def _by_hand(self) -> None:
        name = self.rng.choice(self.names)
        if self.rng.random() < 0.5:
            self.failed_until.pop(name, None)
            self._arrive(name, is_load=True)
            return
        if (process := self.processes.get(name)) is not None:
            process.must_end = True
        self._apply(self.scheduler.unload(name, self.now))

    def _crash(self) -> None:
        if self.processes:
            self._gone(self.rng.choice(list(self.processes.values())), "killed")

    def _reload(self) -> None:
        gone = {name for name in self.names if self.rng.random() < 0.2}
        self._edit([name for name in self.names if name not in gone])

    def _edit(self, names: list[str]) -> None:
        rng = self.rng
        changed = {name for name in names if name in self.rules and rng.random() < 0.2}
        rules = {name: self._random_rules(name) if name in changed or name not in self.rules else self.rules[name]
                 for name in names}  # fmt: skip
        for name in changed | (set(self.rules) - set(names)):
            if (process := self.processes.get(name)) is not None:
                process.must_end = True
            self.failed_until.pop(name, None)
        self.rules = rules
        self._apply(self.scheduler.set_models(rules, self.now, restart=changed))

    def _random_rules(self, name: str) -> ModelRules:
        rng = self.rng
        others = [other for other in self.names if other != name]
        self.estimates[name] = rng.choice((1, 2, 3, 5, 6, 9))
        if self.options.is_plain:
            return ModelRules(need=Need(self.estimates[name]))
        excludes = rng.sample(others, 1) if self.options.has_excludes and rng.random() < 0.5 else []
        return ModelRules(
            ttl_s=rng.choice((None, None, 0.5, 5.0)),
            pinned=rng.random() < 0.1,
            concurrency=rng.choice((None, None, 1, 2)),
            excludes=frozenset(excludes),
            need=Need(self.estimates[name]),
        )  # fmt: skip

    # Processes

    def _start(self, name: str) -> None:
        process = Process(name, self._real_memory(name))
        self.processes[name] = process
        took_s = _some_seconds(self.rng, self.options.longest_start_s)
        fails = self.options.has_failures and not self.is_fair and self.rng.random() < 0.15
        self._later(took_s / 2, lambda: self._allocate(process))
        self._later(took_s, lambda: self._gone(process, "no weights") if fails else self._ready(process))

    def _allocate(self, process: Process) -> None:
        process.memory = process.size

    def _ready(self, process: Process) -> None:
        if self._lives(process):
            self._allocate(process)
            if not process.is_asked_to_stop:
                process.is_ready, process.ready_s = True, self.now
            self._apply(self.scheduler.became_ready(process.model, self.now))

    def _gone(self, process: Process, reason: str | None) -> None:
        if not self._lives(process):
            return
        del self.processes[process.model]
        if process.memory:
            late_s = 0.0 if self.is_fair else self.rng.random() * self.options.late_memory_s
            self.late.append((self.now + late_s, process.memory))
        for ticket in process.leases:
            self.clients[ticket].process = process  # its connection ends later
        has_failed = not process.is_asked_to_stop and not process.must_end
        waiting = self._waiting(process.model)
        actions = self.scheduler.ended(process.model, reason, self.now)
        view = self.scheduler.view().get(process.model)
        if has_failed and view is not None and view.state == "failed":
            self.failed_until[process.model] = view.retry_at_s or 0.0
            assert 0 < self.failed_until[process.model] - self.now <= 60.0
        if has_failed and not process.is_ready:
            refused = sum(isinstance(action, Refuse) and action.kind == "failed" for action in actions)
            assert refused == len(waiting), "a failed start answers all who wait for it"
        self._apply(actions)

    def _lives(self, process: Process) -> bool:
        return self.processes.get(process.model) is process

    # Actions

    def _apply(self, actions: list[Action]) -> None:
        for action in actions:
            self.counts[type(action).__name__] = self.counts.get(type(action).__name__, 0) + 1
            match action:
                case Start(model):
                    self._check_start(model)
                    self._start(model)
                case Stop(model):
                    self._stop(model)
                case Admit(ticket):
                    self._admit(ticket)
                case Refuse(ticket, kind, reason):
                    client = self.clients.pop(ticket)
                    assert client.process is None, "refused after its admission"
                    assert reason
                    self.counts[kind] = self.counts.get(kind, 0) + 1
                case MeasureFree():
                    self._answer_reading()

    def _answer_reading(self) -> None:
        """At once, or late as from a thread: with what was free when the reading began."""
        read_s, free = self.now, self._free()
        self.now += _EPSILON  # two things never happen at the same time
        delay_s = self.rng.choice((0.0, 0.0, 0.01, 0.2))
        self._later(delay_s, lambda: self._tell_free(free, read_s))

    def _tell_free(self, free: Need | None, read_s: float) -> None:
        self.told_free = free
        self._apply(self.scheduler.free_memory(free, self.now, read_s))

    def _stop(self, name: str) -> None:
        process = self.processes[name]
        assert not process.is_asked_to_stop, "stopped twice"
        assert not process.leases, "stopped with a lease"
        if not process.must_end:
            self._check_victim(process)
        process.is_asked_to_stop = True
        self._later(_some_seconds(self.rng, self.options.longest_start_s), lambda: self._gone(process, None))

    def _check_victim(self, process: Process) -> None:
        """Nobody has asked for its end: it was idle for too long, or another model needs its room."""
        rules = self.rules[process.model]
        assert process.is_ready, "a starting model is no victim"
        assert not rules.pinned, "a pinned model is no victim"
        idle_s = self.now - self.scheduler._models[process.model].idle_since_s
        if rules.ttl_s is not None and idle_s >= rules.ttl_s - _EPSILON:
            return
        assert self.now - process.ready_s >= self.limits.min_stay_s - _EPSILON, "stopped before its minimum stay"
        hungry = {client.model for client in self._waiting() if client.model not in self.processes}
        assert hungry, "stopped for nobody"
        assert self._lacks_room(hungry), "stopped though there was room"

    def _lacks_room(self, hungry: set[str]) -> bool:
        """Whether all that wait could not start beside what runs and is not asked to stop."""
        views = self.scheduler.view()
        staying = [name for name, process in self.processes.items() if not process.is_asked_to_stop]
        needs = sum(views[name].need.ram_bytes for name in {*staying, *hungry})
        lacks = self.limits.max_running is not None and len(staying) + len(hungry) > self.limits.max_running
        lacks |= self.limits.memory_budget_bytes is not None and needs > self.limits.memory_budget_bytes
        lacks |= any(self.rules[name].excludes & set(staying) for name in hungry)
        return lacks or (self.told_free is not None and needs > self.told_free.ram_bytes)

    def _admit(self, ticket: int) -> None:
        client = self.clients[ticket]
        assert client.process is None, "admitted twice"
        process = self.processes[client.model]
        assert process.is_ready and not process.is_asked_to_stop and not process.must_end, "admitted to no server"
        limit = self.rules[client.model].concurrency
        assert client.is_load or limit is None or len(process.leases) < limit, "above the limit of concurrency"
        if not client.is_load:
            earlier = [
                t for t, c in self.clients.items() if c.model == client.model and c.process is None and t < ticket
            ]
            assert all(self.clients[t].is_load for t in earlier), "not in the order of arrival"  # fmt: skip
        client.process = process
        process.leases.add(ticket)
        self.longest_wait_s = max(self.longest_wait_s, self.now - client.arrived_s)
        if client.is_load:
            self._later(0.0, lambda: self._end(ticket))
        else:
            self._later(_some_seconds(self.rng, self.options.longest_lease_s), lambda: self._end(ticket))

    def _end(self, ticket: int) -> None:
        """The client is gone; its connection may have ended before."""
        client = self.clients.pop(ticket, None)
        if client is not None and client.process is not None:
            client.process.leases.discard(ticket)
        self._apply(self.scheduler.leave(ticket, self.now))

    # Proofs

    def _check_start(self, name: str) -> None:
        views = self.scheduler.view()
        assert name not in self.processes, "two processes of one model"
        assert any(client.model == name for client in self._waiting()), "started for nobody"
        assert self.now >= self.failed_until.get(name, 0.0) or self._waits_by_hand(name), "started in its pause"
        running = set(self.processes) | {name}
        assert not self.rules[name].excludes & running, "runs beside a model that it excludes"
        if self.limits.max_running is not None:
            assert len(running) <= self.limits.max_running, "too many run"
        budget = self.limits.memory_budget_bytes
        if budget is not None:
            charges = [min(views[other].need.ram_bytes, budget) for other in running]
            assert sum(charges) <= budget, "above the budget"
        free = self._free()
        if free is not None and all(process.memory for process in self.processes.values()):
            grown = sum(max(0, process.memory - views[name].need.ram_bytes) for name, process in self.processes.items())
            assert views[name].need.ram_bytes <= free.ram_bytes + grown, "started without free memory"

    def _waits_by_hand(self, name: str) -> bool:
        return any(client.is_load for client in self._waiting(name))

    def _check(self) -> None:
        views = self.scheduler.view()
        for name, view in views.items():
            process = self.processes.get(name)
            assert (process is not None) == (view.state in ("starting", "ready", "draining")), (name, view)
            if process is not None:
                expected = "draining" if process.is_asked_to_stop or (process.must_end) else (
                    "ready" if process.is_ready else "starting")  # fmt: skip
                assert view.state == expected, (name, view, process)
                assert view.num_leases == len(process.leases)
                assert not process.leases or process.is_ready
            else:
                assert view.num_leases == 0
            assert view.num_waiting == len(self._waiting(name)), (name, view)
        assert set(self.processes) <= set(views)
        assert all(client.model in views for client in self._waiting())

    def _waiting(self, model: str | None = None) -> list[Client]:
        return [c for c in self.clients.values() if c.process is None and model in (None, c.model)]

    # Memory and time

    def _real_memory(self, name: str) -> int:
        """What its process takes: mostly less than the estimate, at times more."""
        return max(1, self.estimates[name] + (int(name[1:]) + self.estimates[name]) % 3 - 1)

    def _free(self) -> Need | None:
        if self.options.total is None:
            return None
        self.late = [(until_s, size) for until_s, size in self.late if until_s > self.now]
        used = sum(process.memory for process in self.processes.values()) + sum(size for _, size in self.late)
        return Need(max(0, self.options.total - used))

    def _later(self, delay_s: float, happen: Callable[[], None]) -> None:
        self.agenda.append((self.now + delay_s, next(self._numbers), happen))


def _some_seconds(rng: random.Random, most: float) -> float:
    """A duration: mostly short."""
    return most * rng.random() ** 3
