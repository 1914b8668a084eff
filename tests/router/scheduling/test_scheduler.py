"""Tells the stories of `stories.yaml`, one for each rule of the scheduler. The clock is a number.

`test_scheduler_properties.py` tests the rules for every state: bounds, minimum stays and leases.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from router.scheduling.scheduler import ModelScheduler
from router.scheduling.terms import (
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
from tests.support.data_files import read_yaml
from tests.support.growth import count_calls

GIB = 1 << 30


def _event(name: str) -> Callable[..., list[Action]]:
    """A method of a story: this event of the scheduler happens now. Returns what follows."""
    return lambda story, *values: story._act(getattr(story.scheduler, name)(*values, story.now))


def _event_of(name: str, *more: object) -> Callable[..., list[Action]]:
    """As `_event`, for an event of a process."""
    return lambda story, process: _event(name)(story, story.number(process), *more)


class Story:
    """A scheduler, and the time and memory of its machine.

    A process has the name of its model, such as `a`. If another process of the model runs when it starts, its
    name is `a'`.
    """

    def __init__(self, free: int | None = None, **limits: float) -> None:
        self.now = 0.0
        self.free, self.free_gpu = free, 0
        values = {"max_wait_s": 10.0, "min_stay_s": 2.0, **limits}
        self.scheduler = ModelScheduler(SchedulerLimits(**values), self._read_free)  # type: ignore[arg-type]
        self.rules: dict[str, ModelRules] = {}
        self.starts: list[str] = []
        self.names: dict[int, str] = {}
        """Generation -> name of each started process. A name means the latest process with this name."""
        self.running: set[int] = set()
        self.readings = 0

    def model(
        self,
        name: str,
        gib: int = 0,
        gpu: int = 0,
        excludes: Sequence[str] = (),
        asleep: Mapping[int, tuple[int, ...]] = {},
        **rules: Any,
    ) -> None:
        """`asleep` has the GiB of the machine's memory, and of the GPU's, that each level needs."""
        levels = {level: _need(*needs) for level, needs in asleep.items()}
        self.rules[name] = ModelRules(need=_need(gib, gpu), excludes=frozenset(excludes), asleep=levels, **rules)
        self.set_models()

    def forget(self, name: str) -> None:
        del self.rules[name]

    def free_is(self, gib: int, gpu: int = 0) -> None:
        self.free, self.free_gpu = gib * GIB, gpu * GIB

    def reload(self, *changed: str) -> list[Action]:
        return self.set_models(restart=changed)

    def set_models(self, restart: tuple[str, ...] = ()) -> list[Action]:
        return self._act(self.scheduler.set_models(self.rules, self.now, restart))

    arrive, load, leave = map(_event, ("arrive", "load", "leave"))
    sleep, unload, drain = map(_event, ("sleep", "unload", "drain"))
    asleep, woke, stays_awake = _event_of("fell_asleep"), _event_of("woke"), _event_of("could_not_sleep", "no memory")

    def hold(self, ticket: int, process: str) -> list[Action]:
        self.scheduler.hold(ticket, self.number(process))
        return []

    def ready(self, process: str, after_s: float = 0.0) -> list[Action]:
        self.now += after_s
        return self._act(self.scheduler.became_ready(self.number(process), self.now))

    def ended(
        self, process: str, reason: str | None = None, after_s: float = 0.0, is_lasting: bool = False
    ) -> list[Action]:
        self.now += after_s
        self.running.discard(self.number(process))
        return self._act(self.scheduler.ended(self.number(process), reason, self.now, is_lasting=is_lasting))

    def measured(self, process: str, gib: int, gpu: int = 0) -> list[Action]:
        return self._act(self.scheduler.measured(self.number(process), _need(gib, gpu), self.now))

    def run(self, name: str, ticket: int) -> None:
        """Starts a model until it is ready and has one lease."""
        self.arrive(ticket, name)
        assert ticket in [action.ticket for action in self.ready(name, 1.0) if isinstance(action, Admit)]

    def wait(self, seconds: float) -> list[Action]:
        """Lets time pass, with every tick that is due."""
        end_s, actions = self.now + seconds, list[Action]()
        while (delay_s := self.scheduler.next_tick_s(self.now)) is not None and self.now + delay_s <= end_s:
            self.now += delay_s
            actions += self._act(self.scheduler.tick(self.now))
        self.now = end_s
        return actions

    def view(self, model: str) -> str:
        view = self.scheduler.view().get(model)
        if view is None:
            return "unknown"
        return f"{view.state} {view.num_running} leases {view.num_waiting} waiting {view.need.ram_bytes // GIB} GiB"

    def next_tick(self) -> str:
        return "none" if self.scheduler.next_tick_s(self.now) is None else "due"

    def number(self, process: str) -> int:
        """The latest generation with this name. 0 if there was none."""
        return max((number for number, name in self.names.items() if name == process), default=0)

    def words_of(self, action: Action) -> str:
        match action:
            case Start(number) | Stop(number) | Wake(number):
                return f"{type(action).__name__.lower()} {self.names[number]}"
            case Sleep(number, level):
                return f"sleep {self.names[number]} at {level}"
            case GiveUp(model):
                return f"give up {model}"
            case Admit(ticket):
                return f"admit {ticket}"
            case Refuse(ticket, kind):
                return f"refuse {ticket} {kind}"
        raise ValueError(action)

    def _act(self, actions: list[Action]) -> list[Action]:
        for action in actions:
            if isinstance(action, Start):
                self.starts.append(action.model)
                name = action.model
                while name in {self.names[number] for number in self.running}:
                    name += "'"
                self.names[action.generation] = name
                self.running.add(action.generation)
        return actions

    def _read_free(self) -> Need | None:
        self.readings += 1
        return None if self.free is None else Need(self.free, self.free_gpu)


def _need(gib: int, gpu: int = 0) -> Need:
    return Need(gib * GIB, gpu * GIB)


class WrittenStory(msgspec.Struct, forbid_unknown_fields=True):
    """A story of `stories.yaml`."""

    rule: str
    models: dict[str, dict[str, Any]]
    steps: list[dict[str, Any]]
    limits: dict[str, float] = {}


def begin(limits: Mapping[str, float], models: Mapping[str, Mapping[str, Any]]) -> Story:
    """Begins a story with these limits and models. `budget` and `free` are in GiB."""
    values = dict(limits)
    if "budget" in values:
        values["memory_budget_bytes"] = values.pop("budget") * GIB
    story = Story(int(values.pop("free")) * GIB if "free" in values else None, **values)
    for name, rules in models.items():
        story.model(name, **rules)
    return story


def happen(story: Story, step: Mapping[str, Any]) -> str | list[str]:
    """Calls the story's method that a step names. Returns the actions that followed."""
    (event,) = step.keys() - {"with", "then"}
    values = step[event] if isinstance(step[event], list) else [step[event]]
    followed = getattr(story, event)(*values, **step.get("with", {}))
    return followed if isinstance(followed, str) else [story.words_of(action) for action in followed or ()]


@pytest.mark.parametrize(
    "written", read_yaml(Path(__file__).with_name("stories.yaml"), WrittenStory), ids=lambda written: written.rule
)
def test_story(written):
    """Each step has exactly the actions of its `then`. A step without it may have any actions."""
    story = begin(written.limits, written.models)
    for number, step in enumerate(written.steps, start=1):
        followed = happen(story, step)
        assert followed == step.get("then", followed), f"step {number}: {step}"


# What needs more than the words of a story


def test_a_pinned_model_is_no_victim_and_the_refusal_names_it():
    story = begin({"budget": 10}, {"a": {"gib": 6, "pinned": True, "ttl_s": 1}, "b": {"gib": 6}})
    story.run("a", 1)
    story.leave(1)
    story.wait(60.0)
    (refusal,) = story.arrive(2, "b")
    assert isinstance(refusal, Refuse)
    assert refusal.kind == "no_room"
    assert refusal.reason == (
        "b needs 6.0 GiB, which the budget of 10.0 GiB does not have beside the pinned a (6.0 GiB) (--memory-budget)."
    )


def test_the_wait_for_memory_ends_with_the_sums():
    story = begin({"free": 5, "budget": 100, "memory_wait_s": 10}, {"a": {"gib": 1, "pinned": True}, "b": {"gib": 6}})
    story.run("a", 1)
    story.free_is(4)
    assert story.arrive(2, "b") == []
    assert story.wait(9.9) == []
    (refusal,) = story.wait(0.3)
    assert isinstance(refusal, Refuse)
    assert (refusal.kind, refusal.retry_after_s) == ("no_room", 10)
    assert refusal.reason == "b needs 6.0 GiB, but 4.0 GiB of memory is free; running: a (1.0 GiB). Waited 10 s."
    assert story.wait(60.0) == []
    readings = story.readings
    story.wait(60.0)
    assert story.readings == readings, "nobody waits: nothing is read"


def test_the_pause_doubles_up_to_a_minute():
    story, pauses = begin({}, {"a": {}}), []
    for ticket in range(8):
        story.arrive(ticket, "a")
        story.ended("a", "no weights")
        pauses.append((story.scheduler.view()["a"].retry_at_s or 0.0) - story.now)
        story.wait(pauses[-1])
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


class Ticket(int):
    """A ticket whose comparisons are calls of Python, so that a search among tickets is counted."""

    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        return int.__eq__(self, other)


@pytest.mark.parametrize("ends", ["admitted", "failed", "left"])
def test_waiting_requests_cost_the_same_each(ends):
    few, many = (count_calls(partial(wait_and_end, number, ends)) for number in (100, 200))
    assert many < 2.2 * few


def wait_and_end(number: int, ends: str) -> None:
    story = begin({"max_waiting": number}, {"a": {"concurrency": 1}})
    for ticket in range(number):
        story.arrive(Ticket(ticket), "a")
    if ends == "failed":
        assert len(story.ended("a", "no weights")) == number
        return
    if ends == "admitted":
        story.ready("a")
    for ticket in range(number):
        story.leave(Ticket(ticket))
    assert story.scheduler.view()["a"].num_waiting == 0
