"""Random worlds check the scheduler's guarantees in every state. A world simulates processes and memory.

These events occur: A request comes or goes. A process becomes ready, falls asleep, wakes, fails, dies or
ends. Memory is measured or is freed late. A model is loaded, unloaded or put to sleep by hand. The models
file changes. Time passes. After every event, these rules hold:

- A request is admitted once or refused once. It is admitted to a ready process that need not end, in the
  order of arrival and within the limit of concurrency. A refusal has a reason and never follows an admission.
- No process gets two orders to stop or two orders to sleep, and none while it has a lease.
- A model is stopped or put to sleep for others only if it is ready, is not pinned and has had its minimum
  stay. A sleeping model may be stopped.
- While a process falls asleep or wakes, the machine and the GPU have room for it both awake and asleep.
- A changed model that is ready may get a second process if there is room. The second process takes over when
  it is ready. The old process ends after its leases.
- Any other start needs a model without a process, and a waiting request or a failure with a restart limit.
- No model starts or wakes while a model that it excludes is awake.
- The processes keep the limit of awake processes, the memory budget and the memory that is really free.
- `view` has the world's states, leases, needs and waiting requests.
- After a tick there is a pause.
- Once faults and new requests have ended, each waiting request is admitted or refused within the scheduler's
  bound. Then the router ends, and no process is left.
"""

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from router.scheduling.scheduler import ModelScheduler
from router.scheduling.terms import (
    NOTHING,
    Action,
    Admit,
    GiveUp,
    ModelRules,
    Need,
    Refuse,
    SchedulerLimits,
    Sleep,
    Start,
    Stop,
    Wake,
)

_EPSILON = 1e-6
_LONGEST_START_S = 4.0
_LONGEST_LEASE_S = 8.0


@dataclass(eq=False)
class Entry:
    """An entry of a model, and the needs that were measured for it."""

    rules: ModelRules
    peaks: dict[int, Need] = field(default_factory=dict)
    """Level of sleep (0 is awake) -> highest measured need."""

    def need(self, level: int = 0) -> Need:
        return self.peaks.get(level) or (self.rules.asleep[level] if level else self.rules.need)


@dataclass(eq=False)
class Process:
    """One process of a model."""

    number: int
    model: str
    entry: Entry
    sizes: dict[int, Need]
    """Level of sleep (0 is awake) -> memory that the process really takes."""
    ready_s: float | None = None
    phase: str = ""
    """The phase of the process's sleep: `falling asleep`, `asleep` or `waking`. Empty if it is awake."""
    level: int = 0
    by_hand: bool = False
    """Whether the process was put to sleep by hand."""
    is_asked_to_stop: bool = False
    must_end: bool = False
    """Whether the entry was changed or removed, the model was unloaded, or the router ends."""
    memory: Need = NOTHING
    growth: Need = NOTHING
    """Memory that falling asleep or waking may still take."""
    measured: Need = NOTHING
    leases: set[int] = field(default_factory=set)

    @property
    def need(self) -> Need:
        if self.phase == "asleep":
            return self.entry.need(self.level).at_least(self.measured)
        awake = self.entry.need().at_least(self.measured)
        return awake.at_least(self.entry.need(self.level)) if self.level else awake

    @property
    def promised(self) -> Need:
        """Memory that the process may still take."""
        return self.growth if self.memory.ram_bytes else self.need


@dataclass(eq=False)
class Client:
    """One request, until it is answered or its client leaves."""

    model: str
    is_load: bool = False
    process: Process | None = None


class World:
    """Drives one scheduler. `step` makes one event. `settle` waits until no request waits."""

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
        """The machine's memory. None means that the system does not report free memory."""
        self.total_gpu = choice((6, 9, 30))
        self.longest_late_s = choice((0.0, 1.0, 30.0))
        """The longest time from a process's end until its memory is free, in seconds."""
        self.has_faults = choice((True, True, False))
        """Whether starts fail, processes die and the models file changes. `settle` sets it to False."""
        self.names = [f"m{number}" for number in range(choice((2, 3, 5, 8)))]
        self.now = 1000.0
        self.counts = Counter[str]()
        self.rules: dict[str, ModelRules] = {}
        self.entries: dict[str, Entry] = {}
        self.processes: dict[int, Process] = {}
        """Number -> process that has not ended."""
        self.current: dict[str, Process] = {}
        """Model -> the process that gets the model's requests."""
        self.failed: set[str] = set()
        """Failed models that restart without a request."""
        self.clients: dict[int, Client] = {}
        self.late_memory = NOTHING
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = iter(range(1, 1 << 60))
        self.scheduler = ModelScheduler(self.limits, self._free)
        self._edit(set(self.names))

    # What happens

    def step(self) -> None:
        """Makes one random event, then compares `view` with the world."""
        happenings = {
            self._arrive: 30,
            self._leave: 10,
            self._pass_time: 50,
            self._measure: 4,
            self._load: 1,
            self._unload: 1,
            self._sleep: 1,
            self._crash: self.has_faults,
            self._reload: 2 * self.has_faults,
        }
        (happen,) = self.rng.choices(list(happenings), weights=list(happenings.values()))
        happen()
        self._check_view()

    def settle(self) -> None:
        """Lets time pass without new requests and faults, until no request waits any more."""
        self.has_faults = False
        longest_turn_s = max(self.limits.max_wait_s, self.limits.min_stay_s) + _LONGEST_LEASE_S
        longest_s = 2 * (longest_turn_s + 3 * _LONGEST_START_S) + self.limits.memory_wait_s + 2.0
        limit_s = self.now + len(self.names) * longest_s + self.longest_late_s + 64.0  # the longest pause
        while self._waiting():
            assert self.now < limit_s, f"waits for ever: {self.clients}, {self.scheduler.view()}"
            self._pass_time()
            self._check_view()

    def end(self) -> None:
        """Ends the router, and checks that no process and no request is left."""
        for process in self.processes.values():
            process.must_end = True
        self._apply(self.scheduler.drain(self.now))
        self._arrive()
        assert not self._waiting(), "a request waits while the router ends"
        limit_s = self.now + 100.0
        while self.processes:
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
        process = self.current.get(model)
        if process is not None and process.phase == "falling asleep" and not (process.level or process.must_end):
            process.by_hand, process.phase = False, ""  # its sleep has not begun
        event = self.scheduler.load if is_load else self.scheduler.arrive
        self._apply(event(ticket, model, self.now))

    def _leave(self) -> None:
        """A client leaves. It may be admitted, waiting, or unknown."""
        self._end(self.rng.choice([*self.clients, -1]))

    def _unload(self) -> None:
        name = self.rng.choice(self.names)
        if name in self.rules:
            self._must_end(name)
            self.failed.discard(name)
        self._apply(self.scheduler.unload(name, self.now))

    def _sleep(self) -> None:
        name = self.rng.choice(self.names)
        process = self.current.get(name)
        is_ready = process is not None and process.ready_s is not None and not self._next_of(name)
        is_ready = is_ready and not self._waiting(name)
        if process is not None and is_ready and not (process.phase or process.must_end or process.is_asked_to_stop):
            process.by_hand, process.phase = True, "falling asleep"
        self._apply(self.scheduler.sleep(name, self.now))

    def _crash(self) -> None:
        if self.processes:
            self._gone(self.rng.choice([*self.processes.values()]), "killed")

    def _reload(self) -> None:
        self._edit({name for name in self.names if self.rng.random() < 0.8})

    def _edit(self, names: set[str]) -> None:
        changed = {name for name in sorted(names & set(self.rules)) if self.rng.random() < 0.5}
        removed = set(self.rules) - names
        kept = names & set(self.rules) - changed
        self.failed &= kept
        self.rules = {name: self.rules[name] if name in kept else self._random_rules(name) for name in sorted(names)}
        for name in self.rules.keys() - kept:
            self.entries[name] = Entry(self.rules[name])
        begins = {name: self.current.get(name) for name in changed}
        actions = self.scheduler.set_models(self.rules, self.now, restart=changed)
        beside = {action.model for action in actions if isinstance(action, Start) and begins.get(action.model)}
        for name in changed | removed:
            self._must_end(name, but=self.current.get(name) if name in beside else None)
        self._apply(actions)

    def _must_end(self, name: str, but: Process | None = None) -> None:
        for process in self.processes.values():
            process.must_end |= process.model == name and process is not but

    def _random_rules(self, name: str) -> ModelRules:
        choice = self.rng.choice
        excluded = choice(self.names)
        need = Need(choice((1, 2, 3, 5, 6, 9)), choice((0, 0, 1, 3, 5)))
        asleep = {1: Need(need.ram_bytes + choice((0, need.gpu_bytes)), min(1, need.gpu_bytes)), 2: Need(1)}
        levels = choice(((), (1,), (2,), (1, 2), (1, 2)))
        return ModelRules(
            on_swap=choice(("stop", "sleep", "sleep")),
            idle_sleep_s=choice((None, None, 0.3, 3.0)),
            asleep={level: asleep[level] for level in levels},
            ttl_s=choice((None, None, 0.5, 5.0)),
            pinned=self.rng.random() < 0.2,
            concurrency=choice((None, None, 1, 2)),
            excludes=frozenset({excluded} - {name}) if self.rng.random() < 0.2 else frozenset(),
            need=need,
            restart_limit=choice((None, None, None, 1, 3)),
            may_overlap=choice((True, True, False)),
        )

    def _pass_time(self) -> None:
        """Advances the clock to the next event, or sometimes to a moment before it."""
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
        """Plans an event for a random time, which is mostly soon."""
        self.agenda.append((self.now + longest_s * self.rng.random() ** 3, next(self._numbers), happen))

    # Processes and memory

    def _start(self, number: int, name: str) -> None:
        entry = self.entries[name]
        estimates = {0: entry.rules.need, **entry.rules.asleep}
        sizes = {n: each.plus(Need(self.rng.choice((-1, 0, 1)))).at_least(Need(1)) for n, each in estimates.items()}
        process = Process(number, name, entry, sizes)
        self.processes[number] = process
        self.current.setdefault(name, process)
        self.failed.discard(name)
        fails = self.has_faults and self.rng.random() < 0.15
        self._later(_LONGEST_START_S / 2, lambda: self._allocate(process))
        self._later(_LONGEST_START_S, lambda: self._gone(process, "no weights") if fails else self._ready(process))

    def _allocate(self, process: Process) -> None:
        process.memory = process.sizes[process.level if process.phase == "asleep" else 0]

    def _change_phase(self, process: Process, begun: str, phase: str) -> None:
        """The process takes the memory of both states. Then it is asleep or awake, or the change fails."""
        process.phase = begun

        def allocate() -> None:
            if process.phase == begun:
                process.memory = process.memory.at_least(process.sizes[process.level if phase else 0])
                process.growth = NOTHING

        def end() -> None:
            if process.number not in self.processes:
                return
            if not process.is_asked_to_stop and not process.must_end:
                process.phase, process.measured, process.growth = phase, NOTHING, NOTHING
                if not phase:
                    process.level, process.by_hand, process.ready_s = 0, False, self.now
                self._allocate(process)
            event = self.scheduler.fell_asleep if phase else self.scheduler.woke
            self._apply(event(process.number, self.now))

        def stay_awake() -> None:
            if process.number in self.processes and not process.is_asked_to_stop:
                process.must_end = True
                self._apply(self.scheduler.could_not_sleep(process.number, "no answer", self.now))

        if phase and self.has_faults and self.rng.random() < 0.1:
            self._later(_LONGEST_START_S, stay_awake)
            return
        fails = self.has_faults and self.rng.random() < 0.15
        self._later(_LONGEST_START_S / 2, allocate)
        self._later(_LONGEST_START_S, lambda: self._gone(process, "no answer") if fails else end())

    def _ready(self, process: Process) -> None:
        if process.number not in self.processes:
            return
        self._allocate(process)
        if not process.is_asked_to_stop:
            process.ready_s = self.now
            if (old := self.current[process.model]) is not process:
                old.must_end, self.current[process.model] = True, process
        self._apply(self.scheduler.became_ready(process.number, self.now))

    def _gone(self, process: Process, reason: str | None) -> None:
        if self.processes.pop(process.number, None) is None:
            return
        name = process.model
        if self.current.get(name) is process:
            del self.current[name]
            if (following := self._next_of(name)) is not None:
                self.current[name] = following
            elif self._restarts(process, reason):
                self.failed.add(name)
        self.late_memory = self.late_memory.plus(process.memory)
        self._later(self.longest_late_s, lambda: self._give_back(process.memory))
        self._apply(self.scheduler.ended(process.number, reason, self.now))

    def _restarts(self, process: Process, reason: str | None) -> bool:
        """Whether the model restarts without a request."""
        rules = self.rules.get(process.model)
        has_failed = reason is not None and not process.must_end
        return has_failed and rules is not None and rules.restart_limit is not None

    def _next_of(self, name: str) -> Process | None:
        """The model's second process, which is to take over."""
        others = (each for each in self.processes.values() if each.model == name and each is not self.current.get(name))
        return next((each for each in others if each.ready_s is None and not each.must_end), None)

    def _give_back(self, memory: Need) -> None:
        self.late_memory = self.late_memory.minus(memory)

    def _free(self) -> Need | None:
        used = self.late_memory.plus(Need.sum(process.memory for process in self.processes.values()))
        return None if self.total is None else Need(self.total, self.total_gpu).minus(used).at_least(NOTHING)

    def _measure(self) -> None:
        for process in list(self.processes.values()):
            if process.ready_s is None and self.rng.random() < 0.5:
                continue
            if process.level and process.phase != "asleep":  # what it uses meanwhile says nothing
                self._apply(self.scheduler.measured(process.number, process.memory, self.now))
                continue
            self._allocate(process)
            if process.ready_s is not None:
                process.measured = process.memory
                if not process.must_end and not process.is_asked_to_stop and process.phase in ("", "asleep"):
                    peaks, level = process.entry.peaks, process.level
                    most = peaks.get(level, NOTHING).at_least(process.memory)
                    peaks[level] = most.at_most(self.limits.budget)
            self._apply(self.scheduler.measured(process.number, process.memory, self.now))

    # Actions, and what must hold for each

    def _apply(self, actions: list[Action]) -> None:
        for action in actions:
            self.counts[type(action).__name__] += 1
            match action:
                case Start(number, model):
                    self._check_start(model)
                    self._start(number, model)
                case Sleep(number, level):
                    process = self.processes[number]
                    self._check_rest(process)
                    self._check_room(process.need.at_least(process.entry.need(level)), process)
                    process.level = level
                    self._change_phase(process, "falling asleep", "asleep")
                case Wake(number):
                    process = self.processes[number]
                    assert process.phase == "asleep" and not process.must_end and not process.is_asked_to_stop
                    assert self._waiting(process.model), "woken for nobody"
                    self._check_number(process.model, process)
                    self._check_room(process.entry.need().at_least(process.need), process)
                    self._change_phase(process, "waking", "")
                case GiveUp(model):
                    assert self.rules[model].restart_limit is not None, "requests start it again"
                    self.failed.discard(model)
                case Stop(number):
                    self._stop(self.processes[number])
                case Admit(ticket, number):
                    self._admit(ticket, self.processes[number])
                case Refuse(ticket, kind, reason):
                    assert self.clients.pop(ticket).process is None, "refused after its admission"
                    assert reason
                    self.counts[kind] += 1

    def _check_start(self, name: str) -> None:
        rules = self.rules[name]
        if (current := self.current.get(name)) is None:
            assert self._waiting(name) or name in self.failed, "started for nobody"
        else:
            assert rules.may_overlap, "a second process of a command"
            assert self._next_of(name) is None, "two processes that are to take over"
            assert current.ready_s is not None and not current.must_end, "not beside a process that answers"
            self.counts["beside"] += 1
        self._check_number(name)
        self._check_room(self.entries[name].need())

    def _check_number(self, name: str, sleeper: Process | None = None) -> None:
        awake = [each for each in self.processes.values() if each is not sleeper and each.phase != "asleep"]
        excluded = self.rules[name].excludes
        assert excluded.isdisjoint(other.model for other in awake), "runs beside a model that it excludes"
        assert len(awake) < (self.limits.max_running or math.inf), "too many run"

    def _check_room(self, need: Need, process: Process | None = None) -> None:
        """Checks that memory suffices for a new process, or for one that falls asleep or wakes."""
        others = [other for other in self.processes.values() if other is not process]
        more = need if process is None else need.minus(process.need).at_least(NOTHING)
        if (budget := self.limits.memory_budget_bytes) is not None and more.ram_bytes:
            assert sum(min(each.ram_bytes, budget) for each in (need, *(other.need for other in others))) <= budget
        if (free := self._free()) is not None:
            for grows, is_promised, is_free in zip(more, Need.sum(each.promised for each in others), free, strict=True):
                assert not grows or grows + is_promised <= is_free, "without free memory"
        if process is not None:
            process.growth = more

    def _check_rest(self, process: Process) -> None:
        assert not process.leases, "sleeps with a lease"
        assert not (process.is_asked_to_stop or process.must_end or process.level), "sleeps twice, or after its end"
        assert process is self.current[process.model]
        if not process.by_hand:
            assert process.ready_s is not None and not process.phase
            self._check_stay(process)

    def _check_stay(self, process: Process) -> None:
        rules, stay_s = self.rules[process.model], self.limits.min_stay_s
        assert not rules.pinned, "a pinned model is no victim"
        assert process.ready_s is not None, "a starting model is no victim"
        stay_s = min(stay_s, rules.ttl_s or stay_s, rules.idle_sleep_s or stay_s)
        assert self.now - process.ready_s >= stay_s - _EPSILON, "stopped before its minimum stay"

    def _stop(self, process: Process) -> None:
        assert not process.is_asked_to_stop, "stopped twice"
        assert not process.leases, "stopped with a lease"
        if not process.must_end:
            assert self.current[process.model] is process or process.ready_s is None
            if process.phase:
                assert process.by_hand or process.phase == "asleep", "stopped while it falls asleep or wakes"
            else:
                self._check_stay(process)
        process.is_asked_to_stop = True
        self._later(_LONGEST_START_S, lambda: self._gone(process, None))

    def _admit(self, ticket: int, process: Process) -> None:
        client = self.clients[ticket]
        assert client.process is None, "admitted twice"
        assert process is self.current[client.model], "admitted to another process"
        assert process.ready_s is not None, "admitted during the start"
        assert not process.is_asked_to_stop, "admitted to a process that ends"
        assert not process.must_end, "admitted to a process that must end"
        assert not process.phase, "admitted to a process that sleeps"
        if not client.is_load:
            limit = self.rules[client.model].concurrency
            assert limit is None or len(process.leases) < limit, "above the limit of concurrency"
            earlier = [other for number, other in self.clients.items() if number < ticket and not other.is_load]
            assert not any(c.model == client.model and c.process is None for c in earlier), "not in order"
        client.process = process
        process.leases.add(ticket)
        self._later(0.0 if client.is_load else _LONGEST_LEASE_S, lambda: self._end(ticket))

    def _end(self, ticket: int) -> None:
        """The client leaves, unless it has left before."""
        client = self.clients.pop(ticket, None)
        if client is not None and client.process is not None:
            client.process.leases.discard(ticket)
        self._apply(self.scheduler.leave(ticket, self.now))

    def _check_view(self) -> None:
        views = self.scheduler.view()
        assert set(self.current) | {client.model for client in self._waiting()} <= set(views)
        for name, view in views.items():
            process = self.current.get(name)
            if process is None:
                assert view.state in ("stopped", "failed"), (name, view.state)
            elif process.is_asked_to_stop or process.must_end:
                assert view.state == "draining", name
            elif process.phase:
                assert view.state == process.phase, name
            else:
                assert view.state == ("starting" if process.ready_s is None else "ready"), name
            own = [each for each in self.processes.values() if each.model == name]
            assert view.num_running == sum(len(each.leases) for each in own), name
            need = Need.sum(each.need for each in own) if own else self.entries[name].need()
            assert view.need == need, (name, view.need, need)
            assert view.num_waiting == len(self._waiting(name)), name

    def _waiting(self, model: str | None = None) -> list[Client]:
        return [c for c in self.clients.values() if c.process is None and model in (None, c.model)]


@pytest.mark.parametrize(
    "seeds", [(*range(10), 41408), pytest.param(range(1000, 1170), marks=pytest.mark.thorough)], ids=["10", "170"]
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
    happened = {"Start", "beside", "Stop", "Sleep", "Wake", "Admit", "overloaded", "failed", "no_room", "removed"}
    assert happened <= set(counts), "else all this would hold because nothing happens"
