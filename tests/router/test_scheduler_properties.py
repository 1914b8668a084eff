"""Random worlds prove what the scheduler promises in every state; a world keeps its own books.

After every event (a request comes or goes; a process is ready, fails, dies or ends; memory is measured or
comes back late; a model is loaded or unloaded by hand; the file changes; time passes):

- A request is admitted once, to a process that is ready and not asked to end, in the order of arrival, within
  the limit of concurrency; or refused once, with a reason, and never after its admission.
- No process is asked to stop while it has a lease, nor twice. A model is stopped for others only if it is
  ready, not pinned, and has had its minimum stay.
- A changed model may have a second process, if there is room; the old one ends after its leases.
- Otherwise a model has at most one process, starts only for a request that waits, or after a failure if it
  has a restart limit, and beside none that it excludes. The number of processes, the sum of their needs and
  the memory that is really free are kept.
- States, leases and waiting requests of `view` are those of the world.
- After a tick there is a pause.
- When nothing fails any more and no request comes, each waiting one is admitted or refused within the bound
  that the scheduler promises. Then the router ends, and nothing is left.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from router.scheduler import ModelScheduler
from router.scheduler_terms import (
    Action,
    Admit,
    GiveUp,
    ModelRules,
    Need,
    Refuse,
    SchedulerLimits,
    Start,
    StartBeside,
    Stop,
    StopBeside,
)

_EPSILON = 1e-6
_LONGEST_START_S = 4.0
_LONGEST_LEASE_S = 8.0


@dataclass(eq=False)
class Process:
    """The one process of a model."""

    model: str
    size: int
    ready_s: float | None = None
    is_asked_to_stop: bool = False
    must_end: bool = False
    """Its entry was changed or removed, it was unloaded, or the router ends."""
    memory: int = 0
    leases: set[int] = field(default_factory=set)


@dataclass(eq=False)
class Client:
    """One request, until it is answered or leaves."""

    model: str
    is_load: bool = False
    process: Process | None = None


class World:
    """Drives one scheduler; `step` lets one thing happen, `settle` lets all waiting ones have their end."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        choice = self.rng.choice
        self.limits = SchedulerLimits(
            memory_budget_bytes=choice((None, 6, 10, 20)),
            max_running=choice((None, None, 1, 2, 3)),
            max_wait_s=choice((1.0, 5.0)),
            max_waiting=choice((3, 8, 50)),
            min_stay_s=choice((0.0, 1.0, 2.0)),
            memory_wait_s=choice((1.0, 10.0)),
        )
        self.total = choice((None, 8, 12, 40))
        """Memory of the machine; None: the system does not tell what is free."""
        self.longest_late_s = choice((0.0, 1.0, 30.0))
        """How long the memory of an ended process may stay away."""
        self.has_faults = choice((True, True, False))
        """Whether starts fail, processes die and the file changes; later nothing does."""
        self.names = [f"m{number}" for number in range(choice((2, 3, 5, 8)))]
        self.now = 1000.0
        self.counts = Counter[str]()
        self.rules: dict[str, ModelRules] = {}
        self.processes: dict[str, Process] = {}
        self.beside: dict[str, Process] = {}
        """The second processes of models that were changed."""
        self.failed: set[str] = set()
        """Models that start again by themselves."""
        self.clients: dict[int, Client] = {}
        self.late_memory = 0
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = iter(range(1, 1 << 60))
        self.scheduler = ModelScheduler(self.limits, self._free)
        self._edit(set(self.names))

    # What happens

    def step(self) -> None:
        """One thing happens, then the books are compared."""
        happenings = {
            self._arrive: 30,
            self._leave: 10,
            self._pass_time: 50,
            self._measure: 4,
            self._load: 1,
            self._unload: 1,
            self._crash: self.has_faults,
            self._reload: 2 * self.has_faults,
        }
        (happen,) = self.rng.choices(list(happenings), weights=list(happenings.values()))
        happen()
        self._check_view()

    def settle(self) -> None:
        """Nothing new comes and nothing fails: every waiting request must have its end."""
        self.has_faults = False
        longest_turn_s = max(self.limits.max_wait_s, self.limits.min_stay_s) + _LONGEST_LEASE_S
        longest_s = 2 * (longest_turn_s + 2 * _LONGEST_START_S) + self.limits.memory_wait_s + 2.0
        limit_s = self.now + len(self.names) * longest_s + self.longest_late_s + 64.0  # the longest pause
        while self._waiting():
            assert self.now < limit_s, f"waits for ever: {self.clients}, {self.scheduler.view()}"
            self._pass_time()
            self._check_view()

    def end(self) -> None:
        """The router ends: nothing may be left."""
        for process in self._all():
            process.must_end = True
        self._apply(self.scheduler.drain(self.now))
        self._arrive()
        assert not self._waiting(), "a request waits while the router ends"
        limit_s = self.now + 100.0
        while self._all():
            assert self.now < limit_s, f"runs for ever: {self.processes}"
            self._pass_time()
            self._check_view()
        assert self.scheduler.next_tick_s(self.now) is None
        assert all(view.state in ("stopped", "failed") for view in self.scheduler.view().values())

    def _arrive(self) -> None:
        self._ask(self.rng.choice([*self.names, *self.names[:2], "unknown"]))

    def _load(self) -> None:
        self._ask(self.rng.choice(self.names), is_load=True)

    def _ask(self, model: str, *, is_load: bool = False) -> None:
        ticket = next(self._numbers)
        self.clients[ticket] = Client(model, is_load)
        event = self.scheduler.load if is_load else self.scheduler.arrive
        self._apply(event(ticket, model, self.now))

    def _leave(self) -> None:
        """A client goes, whether it is admitted, waits, or was never known."""
        self._end(self.rng.choice([*self.clients, -1]))

    def _unload(self) -> None:
        name = self.rng.choice(self.names)
        if (process := self.processes.get(name)) is not None:
            process.must_end = True
        self._apply(self.scheduler.unload(name, self.now))

    def _crash(self) -> None:
        if self._all():
            self._gone(self.rng.choice(self._all()), "killed")

    def _reload(self) -> None:
        self._edit({name for name in self.names if self.rng.random() < 0.8})

    def _edit(self, names: set[str]) -> None:
        changed = {name for name in sorted(names & set(self.rules)) if self.rng.random() < 0.5}
        removed = set(self.rules) - names
        kept = names & set(self.rules) - changed
        self.failed &= kept
        self.rules = {name: self.rules[name] if name in kept else self._random_rules(name) for name in sorted(names)}
        actions = self.scheduler.set_models(self.rules, self.now, restart=changed)
        for name in (changed | removed) - {action.model for action in actions if isinstance(action, StartBeside)}:
            if (process := self.processes.get(name)) is not None:
                process.must_end = True
        self._apply(actions)

    def _random_rules(self, name: str) -> ModelRules:
        choice = self.rng.choice
        excluded = choice(self.names)
        return ModelRules(
            ttl_s=choice((None, None, 0.5, 5.0)),
            pinned=self.rng.random() < 0.2,
            concurrency=choice((None, None, 1, 2)),
            excludes=frozenset({excluded} - {name}) if self.rng.random() < 0.2 else frozenset(),
            need=Need(choice((1, 2, 3, 5, 6, 9))),
            restart_limit=choice((None, None, None, 1, 3)),
            may_overlap=choice((True, True, False)),
        )

    def _pass_time(self) -> None:
        """To the next thing that is due, or a part of the way."""
        delay_s = self.scheduler.next_tick_s(self.now)
        tick_s = float("inf") if delay_s is None else self.now + delay_s
        self.agenda.sort(key=lambda item: item[:2])
        due_s = min(tick_s, self.agenda[0][0] if self.agenda else self.now + 1.0)
        if self.rng.random() < 0.2:
            self.now += max(0.0, due_s - self.now) * self.rng.random()
            return
        self.now = max(self.now, due_s)
        if tick_s <= self.now:
            actions = self.scheduler.tick(self.now)
            assert self.scheduler.next_tick_s(self.now) != 0, "ticks without a pause"
            self._apply(actions)
        elif self.agenda:
            _, _, happen = self.agenda.pop(0)
            happen()

    def _later(self, longest_s: float, happen: Callable[[], None]) -> None:
        """Mostly soon."""
        self.agenda.append((self.now + longest_s * self.rng.random() ** 3, next(self._numbers), happen))

    # Processes and memory

    def _all(self) -> list[Process]:
        return [*self.processes.values(), *self.beside.values()]

    def _start(self, name: str, processes: dict[str, Process]) -> None:
        estimate = self.rules[name].need.ram_bytes
        self.failed.discard(name)
        process = Process(name, max(1, estimate + self.rng.choice((-1, 0, 1))))
        processes[name] = process
        fails = self.has_faults and self.rng.random() < 0.15
        self._later(_LONGEST_START_S / 2, lambda: self._allocate(process))
        self._later(_LONGEST_START_S, lambda: self._gone(process, "no weights") if fails else self._ready(process))

    def _allocate(self, process: Process) -> None:
        process.memory = process.size

    def _ready(self, process: Process) -> None:
        if process in self._all():
            self._allocate(process)
            if self.beside.get(process.model) is process:
                if not process.is_asked_to_stop:
                    self._take_over(process)
                return
            if not process.is_asked_to_stop:
                process.ready_s = self.now
            self._apply(self.scheduler.became_ready(process.model, self.now))

    def _take_over(self, process: Process) -> None:
        name = process.model
        old = self.beside[name] = self.processes[name]
        self.processes[name], process.ready_s, old.must_end = process, self.now, True
        self._apply(self.scheduler.took_over(name, self.now))

    def _gone(self, process: Process, reason: str | None) -> None:
        if process not in self._all():
            return
        is_beside = self.beside.get(process.model) is process
        del (self.beside if is_beside else self.processes)[process.model]
        if not is_beside and process.model in self.beside and self.beside[process.model].ready_s is None:
            self.processes[process.model] = self.beside.pop(process.model)
            self.processes[process.model].must_end = process.must_end
        self.late_memory += process.memory
        rules = self.rules.get(process.model)
        if (
            reason is not None
            and not is_beside
            and not process.must_end
            and rules is not None
            and rules.restart_limit is not None
        ):
            self.failed.add(process.model)
        self._later(self.longest_late_s, lambda: self._give_back(process.memory))
        end = self.scheduler.beside_ended if is_beside else self.scheduler.ended
        self._apply(end(process.model, reason, self.now))

    def _give_back(self, memory: int) -> None:
        self.late_memory -= memory

    def _free(self) -> Need | None:
        used = self.late_memory + sum(process.memory for process in self._all())
        return None if self.total is None else Need(max(0, self.total - used))

    def _measure(self) -> None:
        for name, process in list(self.processes.items()):
            if process.ready_s is not None or self.rng.random() < 0.5:
                self._allocate(process)
                self._apply(self.scheduler.measured(name, Need(process.memory), self.now))

    # Actions, and what must hold for each

    def _apply(self, actions: list[Action]) -> None:
        for action in actions:
            self.counts[type(action).__name__] += 1
            match action:
                case Start(model):
                    assert model not in {each.model for each in self._all()}, "two processes of one model"
                    self._check_start(model)
                    assert self._waiting(model) or model in self.failed, "started for nobody"
                    self._start(model, self.processes)
                case StartBeside(model):
                    assert model not in self.beside, "three processes of one model"
                    self._check_start(model)
                    self._start(model, self.beside)
                case StopBeside(model):
                    assert not self.beside[model].leases, "stopped with a lease"
                    self._ask_to_stop(self.beside[model])
                case GiveUp(model):
                    assert self.rules[model].restart_limit is not None, "requests start it again"
                    self.failed.discard(model)
                case Stop(model):
                    self._stop(self.processes[model])
                case Admit(ticket):
                    self._admit(ticket)
                case Refuse(ticket, kind, reason):
                    assert self.clients.pop(ticket).process is None, "refused after its admission"
                    assert reason
                    self.counts[kind] += 1

    def _check_start(self, name: str) -> None:
        needs = {name: view.need.ram_bytes for name, view in self.scheduler.view().items()}
        running = {*self.processes, *self.beside, name}
        assert not self.rules[name].excludes & running, "runs beside a model that it excludes"
        num_processes = len(self._all()) + 1
        assert num_processes <= (self.limits.max_running or num_processes), "too many run"
        budget = self.limits.memory_budget_bytes
        if budget is not None:
            assert sum(min(needs[other], budget) for other in running) <= budget, "above the budget"
        if (free := self._free()) is not None:
            promised = sum(needs[other] for other, process in self.processes.items() if not process.memory)
            growing = [each.model for each in self.beside.values() if not each.memory]
            # An entry that was removed meanwhile has no rules any more.
            promised += sum(self.rules[x].need.ram_bytes if x in self.rules else needs[x] for x in growing)
            need = self.rules[name].need.ram_bytes if name in self.processes else needs[name]
            assert need + promised <= free.ram_bytes, "started without free memory"

    def _stop(self, process: Process) -> None:
        assert not process.is_asked_to_stop, "stopped twice"
        assert not process.leases, "stopped with a lease"
        if not process.must_end:
            rules = self.rules[process.model]
            assert process.ready_s is not None, "a starting model is no victim"
            assert not rules.pinned, "a pinned model is no victim"
            stay_s = min(self.limits.min_stay_s, rules.ttl_s or self.limits.min_stay_s)
            assert self.now - process.ready_s >= stay_s - _EPSILON, "stopped before its minimum stay"
        self._ask_to_stop(process)

    def _ask_to_stop(self, process: Process) -> None:
        process.is_asked_to_stop = True
        self._later(_LONGEST_START_S, lambda: self._gone(process, None))

    def _admit(self, ticket: int) -> None:
        client = self.clients[ticket]
        assert client.process is None, "admitted twice"
        process = self.processes[client.model]
        assert process.ready_s is not None, "admitted during the start"
        assert not process.is_asked_to_stop, "admitted to a process that ends"
        assert not process.must_end, "admitted to a process that must end"
        if not client.is_load:
            limit = self.rules[client.model].concurrency
            assert limit is None or len(process.leases) < limit, "above the limit of concurrency"
            earlier = [other for number, other in self.clients.items() if number < ticket and not other.is_load]
            assert not any(c.model == client.model and c.process is None for c in earlier), "not in order"
        client.process = process
        process.leases.add(ticket)
        self._later(0.0 if client.is_load else _LONGEST_LEASE_S, lambda: self._end(ticket))

    def _end(self, ticket: int) -> None:
        """The client is gone; its connection may have ended before."""
        client = self.clients.pop(ticket, None)
        if client is not None and client.process is not None:
            client.process.leases.discard(ticket)
        self._apply(self.scheduler.leave(ticket, self.now))

    def _check_view(self) -> None:
        views = self.scheduler.view()
        assert set(self.processes) | {client.model for client in self._waiting()} <= set(views)
        for name, view in views.items():
            process = self.processes.get(name)
            if process is None:
                assert view.state in ("stopped", "failed"), (name, view.state)
            elif process.is_asked_to_stop or process.must_end:
                assert view.state == "draining", name
            else:
                assert view.state == ("starting" if process.ready_s is None else "ready"), name
            assert view.num_running == sum(len(each.leases) for each in self._all() if each.model == name), name
            assert view.num_waiting == len(self._waiting(name)), name

    def _waiting(self, model: str | None = None) -> list[Client]:
        return [c for c in self.clients.values() if c.process is None and model in (None, c.model)]


@pytest.mark.parametrize(
    "seeds", [range(30), pytest.param(range(1000, 1150), marks=pytest.mark.thorough)], ids=["30", "150"]
)
def test_the_books_agree_in_random_worlds(seeds):
    counts = Counter[str]()
    for seed in seeds:
        world = World(seed)
        try:
            for _ in range(250):
                world.step()
            world.settle()
            world.end()
        except AssertionError as err:
            raise AssertionError(f"world {seed}: {err}") from err
        counts += world.counts
    happened = {"Start", "StartBeside", "Stop", "Admit", "overloaded", "failed", "no_room", "removed"}
    assert happened <= set(counts), "else all this would hold because nothing happens"
