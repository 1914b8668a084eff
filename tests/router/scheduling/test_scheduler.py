"""Tells the stories of `stories.txt`, one for each rule of the scheduler. The clock is a number.

A story is its rule, the limits and models (`begin`), and events with the actions that follow (`happen`).

`test_scheduler_properties.py` tests the rules for every state: bounds, minimum stays and leases.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

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
from tests.support.growth import growth

GIB = 1 << 30


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

    def model(self, name: str, gib: int = 0, excludes: str = "", asleep: str = "", **rules: object) -> None:
        """`asleep=1:2+1`: at level 1, it needs 2 GiB of the machine's memory and 1 GiB of the GPU's."""
        excluded = frozenset(excludes.split(",") if excludes else ())
        levels = {}
        for each in filter(None, asleep.split(",")):
            level, _, needs = each.partition(":")
            ram, _, gpu = needs.partition("+")
            levels[int(level)] = Need(int(ram) * GIB, int(gpu or 0) * GIB)
        need = Need(gib * GIB, int(rules.pop("gpu", 0)) * GIB)  # type: ignore[call-overload]
        self.rules[name] = ModelRules(need=need, excludes=excluded, asleep=levels, **rules)  # type: ignore[arg-type]
        self.set_models()

    def forget(self, name: str) -> None:
        del self.rules[name]

    def free_is(self, gib: int, gpu: int = 0) -> None:
        self.free, self.free_gpu = gib * GIB, gpu * GIB

    def reload(self, *changed: str) -> list[Action]:
        return self.set_models(restart=changed)

    def set_models(self, restart: tuple[str, ...] = ()) -> list[Action]:
        return self._act(self.scheduler.set_models(self.rules, self.now, restart))

    def arrive(self, ticket: int, model: str) -> list[Action]:
        return self._act(self.scheduler.arrive(ticket, model, self.now))

    def load(self, ticket: int, model: str) -> list[Action]:
        return self._act(self.scheduler.load(ticket, model, self.now))

    def leave(self, ticket: int) -> list[Action]:
        return self._act(self.scheduler.leave(ticket, self.now))

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

    def asleep(self, process: str) -> list[Action]:
        return self._act(self.scheduler.fell_asleep(self.number(process), self.now))

    def stays_awake(self, process: str) -> list[Action]:
        return self._act(self.scheduler.could_not_sleep(self.number(process), "no memory", self.now))

    def woke(self, process: str) -> list[Action]:
        return self._act(self.scheduler.woke(self.number(process), self.now))

    def sleep(self, model: str) -> list[Action]:
        return self._act(self.scheduler.sleep(model, self.now))

    def unload(self, model: str) -> list[Action]:
        return self._act(self.scheduler.unload(model, self.now))

    def measured(self, process: str, gib: int, gpu: int = 0) -> list[Action]:
        return self._act(self.scheduler.measured(self.number(process), Need(gib * GIB, gpu * GIB), self.now))

    def drain(self) -> list[Action]:
        return self._act(self.scheduler.drain(self.now))

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


STORIES = Path(__file__).with_name("stories.txt").read_text()


def begin(setup: str) -> Story:
    """Begins a story. `setup` has the limits and, after each bar, a model with its GiB and rules."""
    limits, *models = setup.split("|")
    values = dict(read_word(word) for word in limits.split())
    if "budget" in values:
        values["memory_budget_bytes"] = values.pop("budget") * GIB
    story = Story(values.pop("free") * GIB if "free" in values else None, **values)
    for model in models:
        happen(story, f"model {model}")
    return story


def read_word(word: str) -> tuple[str, Any]:
    """Parses `NAME=VALUE` or `VALUE` (then the name is empty). Converts values that are numbers."""
    name, _, value = word.rpartition("=")
    if not value.replace(".", "").isdigit():
        return name, value
    return name, float(value) if "." in value else int(value)


def happen(story: Story, step: str) -> str:
    """Calls the story's method that a step names. Returns the actions that followed as text."""
    method, *words = step.split()
    arguments = [read_word(word) for word in words]
    unnamed = [value for name, value in arguments if not name]
    followed = getattr(story, method)(*unnamed, **{name: value for name, value in arguments if name})
    return followed if isinstance(followed, str) else ", ".join(map(story.words_of, followed or [])) or "nothing"


@pytest.mark.parametrize("text", [pytest.param(text, id=text.split("\n")[0]) for text in STORIES.strip().split("\n\n")])
def test_story(text):
    """Each step has exactly the actions after its `>`. A step without `>` may have any actions."""
    _, setup, *lines = text.split("\n")
    story = begin(setup)
    for number, step in enumerate("; ".join(lines).split("; "), start=1):
        words, _, expected = step.partition(" > ")
        followed = happen(story, words)
        assert followed == (expected or followed), f"step {number}: {step}"


# What needs more than the words of a story


@pytest.fixture
def one_fits() -> Story:
    """A story with models a and b, and with room for one of them."""
    story = Story(memory_budget_bytes=10 * GIB)
    story.model("a", 6)
    story.model("b", 6)
    return story


def refusals(actions: list[Action]) -> dict[int, str]:
    return {action.ticket: action.kind for action in actions if isinstance(action, Refuse)}


def test_requests_above_max_waiting_are_refused(one_fits):
    story = Story(max_waiting=2)
    story.model("a")
    story.arrive(1, "a")
    story.arrive(2, "a")
    (refusal,) = story.arrive(3, "a")
    assert isinstance(refusal, Refuse)
    assert (refusal.kind, refusal.retry_after_s) == ("overloaded", 1)
    assert "--max-waiting" in refusal.reason


def test_a_pinned_model_is_no_victim_and_the_refusal_names_it(one_fits):
    one_fits.model("a", 6, pinned=True, ttl_s=1.0)
    one_fits.run("a", 1)
    one_fits.leave(1)
    one_fits.wait(60.0)
    (refusal,) = one_fits.arrive(2, "b")
    assert isinstance(refusal, Refuse)
    assert refusal.kind == "no_room"
    assert refusal.reason == (
        "b needs 6.0 GiB, which the budget of 10.0 GiB does not have beside the pinned a (6.0 GiB) (--memory-budget)."
    )


@pytest.mark.parametrize(("gap_s", "most_starts"), [(0.0, 2 * (200 / 10 + 1)), (0.5, 2 * (200 / 2 + 1))])
def test_streams_for_two_models_swap_seldom_and_nobody_starves(gap_s, most_starts):
    """Both models get requests of 0.4 s for 200 s. There is room for one model. A swap takes 0.5 s."""
    max_wait_s, lease_s, start_s = 10.0, 0.4, 0.5
    story = Story(max_running=1, max_wait_s=max_wait_s, max_waiting=10_000)
    story.model("a")
    story.model("b")
    story.now = 0.0
    agenda: list[tuple[float, int, Callable[[], list[Action]]]] = []
    arrived, longest_s, number, next_s = dict[int, float](), 0.0, 0, 0.0

    def apply(actions: list[Action]) -> None:
        nonlocal longest_s
        for action in actions:
            if isinstance(action, Start):
                agenda.append((story.now + start_s / 2, len(agenda), partial(story.ready, action.model)))
            elif isinstance(action, Stop):
                agenda.append(
                    (story.now + start_s / 2, len(agenda), partial(story.ended, story.names[action.generation]))
                )
            elif isinstance(action, Admit):
                longest_s = max(longest_s, story.now - arrived[action.ticket])
                agenda.append((story.now + lease_s, len(agenda), partial(story.leave, action.ticket)))
            assert not isinstance(action, Refuse)

    while story.now < 200.0:
        apply(story.wait(0.0))
        if story.now >= next_s:
            for model in ("a", "b"):
                number += 1
                arrived[number] = story.now
                apply(story.arrive(number, model))
            next_s = story.now + lease_s / 2 + gap_s
        due = [item for item in agenda if item[0] <= story.now]
        agenda = [item for item in agenda if item[0] > story.now]
        for _, _, happen in due:
            apply(happen())
        story.now = round(story.now + 0.1, 6)

    assert len(story.starts) <= most_starts
    assert longest_s <= 2 * (max_wait_s + lease_s + start_s) + 0.5, "the bound of the docstring"


def test_the_wait_for_memory_ends_with_the_sums():
    story = Story(free=5 * GIB, memory_budget_bytes=100 * GIB, memory_wait_s=10.0)
    story.model("a", 1, pinned=True)
    story.model("b", 6)
    story.run("a", 1)
    story.free = 4 * GIB
    assert story.arrive(2, "b") == []
    assert story.wait(9.9) == []
    (refusal,) = story.wait(0.3)
    assert isinstance(refusal, Refuse)
    assert (refusal.kind, refusal.retry_after_s) == ("no_room", 10)
    assert refusal.reason == (
        "b needs 6.0 GiB, but 4.0 GiB of memory is free; running: a (1.0 GiB). Waited 10 s."
    )  # fmt: skip
    assert story.wait(60.0) == []
    readings = story.readings
    story.wait(60.0)
    assert story.readings == readings, "nobody waits: nothing is read"


def test_memory_of_gpus_counts_like_that_of_the_machine():
    scheduler = ModelScheduler(SchedulerLimits(), lambda: Need(100 * GIB, 80 * GIB))
    rules = {name: ModelRules(need=Need(GIB, 70 * GIB)) for name in ("a", "b")}
    scheduler.set_models(rules, 0.0)
    assert scheduler.arrive(1, "a", 0.1) == [Start(1, "a")]
    assert scheduler.arrive(2, "b", 0.2) == []
    assert scheduler.view()["b"].state == "stopped"


def test_the_pause_doubles_up_to_a_minute_and_a_load_by_hand_ends_it(one_fits):
    pauses = []
    for ticket in range(8):
        one_fits.arrive(ticket, "a")
        one_fits.ended("a", "no weights")
        view = one_fits.scheduler.view()["a"]
        pauses.append((view.retry_at_s or 0.0) - one_fits.now)
        one_fits.wait(pauses[-1])
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    one_fits.arrive(20, "a")
    one_fits.ended("a", "no weights")
    assert refusals(one_fits.arrive(21, "a")) == {21: "failed"}
    assert happen(one_fits, "load 22 a") == "start a"
    assert happen(one_fits, "ready a") == "admit 22"


@pytest.mark.alone
@pytest.mark.parametrize("ends", ["admitted", "failed", "left"])
def test_waiting_requests_cost_the_same_each(ends):
    def prepare(number: int) -> Callable[[], object]:
        def work() -> None:
            story = Story(max_waiting=number)
            story.model("a", concurrency=1)
            for ticket in range(number):
                story.scheduler.arrive(ticket, "a", 0.0)
            if ends == "failed":
                assert len(story.scheduler.ended(1, "no weights", 1.0)) == number
                return
            if ends == "admitted":
                story.scheduler.became_ready(1, 1.0)
            for ticket in range(number):
                story.scheduler.leave(ticket, 2.0)
            assert story.scheduler.view()["a"].num_waiting == 0

        return work

    assert growth(prepare) is None
