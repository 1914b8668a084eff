"""The rules of the scheduler, one by one, in stories of a few events; the clock is a number."""

from collections.abc import Callable
from functools import partial

import pytest

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
from tests.growth import growth

GIB = 1 << 30


class Story:
    """A scheduler whose readings of the free memory come at once."""

    def __init__(self, free: int | None = None, **limits: float) -> None:
        self.now = 0.0
        self.free = free
        values = {"max_wait_s": 10.0, "min_stay_s": 2.0, **limits}
        self.scheduler = Scheduler(SchedulerLimits(**values), self._free(), self.now)  # type: ignore[arg-type]
        self.rules: dict[str, ModelRules] = {}
        self.starts: list[str] = []
        self.readings = 0

    def model(self, name: str, gib: int = 0, **rules: object) -> None:
        self.rules[name] = ModelRules(need=Need(gib * GIB), **rules)  # type: ignore[arg-type]
        self.set_models()

    def set_models(self, restart: tuple[str, ...] = ()) -> list[Action]:
        return self._act(self.scheduler.set_models(self.rules, self.now, restart))

    def arrive(self, ticket: int, model: str) -> list[Action]:
        return self._act(self.scheduler.arrive(ticket, model, self.now))

    def load(self, ticket: int, model: str) -> list[Action]:
        return self._act(self.scheduler.load(ticket, model, self.now))

    def leave(self, ticket: int) -> list[Action]:
        return self._act(self.scheduler.leave(ticket, self.now))

    def ready(self, model: str, after_s: float = 0.0) -> list[Action]:
        self.now += after_s
        return self._act(self.scheduler.became_ready(model, self.now))

    def ended(self, model: str, reason: str | None = None, after_s: float = 0.0) -> list[Action]:
        self.now += after_s
        return self._act(self.scheduler.ended(model, reason, self.now))

    def unload(self, model: str) -> list[Action]:
        return self._act(self.scheduler.unload(model, self.now))

    def measured(self, model: str, gib: int) -> list[Action]:
        return self._act(self.scheduler.measured(model, Need(gib * GIB), self.now))

    def drain(self) -> list[Action]:
        return self._act(self.scheduler.drain(self.now))

    def run_model(self, name: str, ticket: int) -> None:
        """A model that is ready, with one lease."""
        self.arrive(ticket, name)
        assert Admit(ticket) in self.ready(name, 1.0)

    def wait(self, seconds: float) -> list[Action]:
        """Lets time pass, with every tick that is due."""
        end_s, actions = self.now + seconds, list[Action]()
        while (delay_s := self.scheduler.next_tick_s(self.now)) is not None and self.now + delay_s <= end_s:
            self.now += delay_s
            actions += self._act(self.scheduler.tick(self.now))
        self.now = end_s
        return actions

    def state(self, model: str) -> str:
        return self.scheduler.view()[model].state

    def _act(self, actions: list[Action]) -> list[Action]:
        done: list[Action] = []
        for action in actions:
            if isinstance(action, MeasureFree):
                self.readings += 1
                self.now += 1e-6
                done += self._act(self.scheduler.free_memory(self._free(), self.now))
            else:
                done.append(action)
        self.starts += [action.model for action in done if isinstance(action, Start)]
        return done

    def _free(self) -> Need | None:
        return None if self.free is None else Need(self.free)


@pytest.fixture
def one_fits() -> Story:
    """Models a and b with room for one of them."""
    story = Story(memory_budget_bytes=10 * GIB)
    story.model("a", 6)
    story.model("b", 6)
    return story


def refusals(actions: list[Action]) -> dict[int, str]:
    return {action.ticket: action.kind for action in actions if isinstance(action, Refuse)}


# Leases


def test_a_request_starts_its_model_and_is_admitted_when_it_is_ready(one_fits):
    assert one_fits.arrive(1, "a") == [Start("a")]
    assert one_fits.arrive(2, "a") == []
    assert one_fits.ready("a", 1.0) == [Admit(1), Admit(2)]
    assert one_fits.arrive(3, "a") == [Admit(3)]


def test_a_lease_lasts_from_admission_to_the_last_byte(one_fits):
    """llama.cpp #28698: a model was evicted between its start and the request for which it was started."""
    one_fits.arrive(1, "a")
    one_fits.arrive(2, "b")
    assert one_fits.ready("a", 5.0) == [Admit(1)]
    assert one_fits.wait(100.0) == []
    assert one_fits.leave(1) == [Stop("a")]
    assert one_fits.ended("a") == [Start("b")]


@pytest.mark.parametrize("leaves", ["while it waits", "before readiness", "when admitted"])
def test_a_client_that_leaves_gives_its_place_up_in_every_state(one_fits, leaves):
    """llama-swap's design.md: a counter that stayed above 0 kept a model for ever."""
    if leaves == "while it waits":
        one_fits.run_model("b", 9)
        one_fits.arrive(1, "a")
        one_fits.leave(1)
        one_fits.leave(9)
        assert one_fits.wait(60.0) == []
        return
    one_fits.arrive(1, "a")
    if leaves == "when admitted":
        one_fits.ready("a", 1.0)
    one_fits.leave(1)
    one_fits.ready("a", 1.0)
    view = one_fits.scheduler.view()["a"]
    assert (view.num_leases, view.num_waiting) == (0, 0)
    one_fits.wait(2.0)
    assert one_fits.arrive(2, "b") == [Stop("a")]


def test_a_ticket_may_leave_twice_or_be_unknown(one_fits):
    one_fits.run_model("a", 1)
    one_fits.leave(1)
    assert one_fits.leave(1) == []
    assert one_fits.leave(77) == []


def test_leases_of_a_dead_process_do_not_count_for_the_next_one(one_fits):
    one_fits.model("a", 6, concurrency=1)
    one_fits.run_model("a", 1)
    one_fits.ended("a", "killed")
    one_fits.wait(1.0)
    one_fits.arrive(2, "a")
    assert one_fits.ready("a", 1.0) == [Admit(2)]
    assert one_fits.leave(1) == []
    assert one_fits.scheduler.view()["a"].num_leases == 1


def test_requests_beyond_the_concurrency_wait_in_order():
    story = Story()
    story.model("a", concurrency=2)
    for ticket in (1, 2, 3, 4):
        story.arrive(ticket, "a")
    assert story.ready("a") == [Admit(1), Admit(2)]
    assert story.leave(3) == []
    assert story.leave(1) == [Admit(4)]


def test_requests_above_max_waiting_are_refused(one_fits):
    story = Story(max_waiting=2)
    story.model("a")
    story.arrive(1, "a")
    story.arrive(2, "a")
    (refusal,) = story.arrive(3, "a")
    assert isinstance(refusal, Refuse)
    assert (refusal.kind, refusal.retry_after_s) == ("overloaded", 1)
    assert "--max-waiting" in refusal.reason


# Victims


def test_an_idle_model_is_stopped_only_if_the_sums_say_so():
    """Ollama #13227: models were evicted with 498 GiB free."""
    story = Story(memory_budget_bytes=12 * GIB)
    story.model("a", 6)
    story.model("b", 6)
    story.run_model("a", 1)
    story.leave(1)
    story.wait(60.0)
    assert story.arrive(2, "b") == [Start("b")]


def test_a_starting_model_is_no_victim(one_fits):
    """llama.cpp #25528."""
    one_fits.arrive(1, "a")
    one_fits.leave(1)
    one_fits.arrive(2, "b")
    assert one_fits.wait(60.0) == []
    assert one_fits.ready("a") == []
    assert one_fits.wait(2.0) == [Stop("a")], "after its minimum stay"


def test_a_pinned_model_is_no_victim_and_the_refusal_names_it(one_fits):
    one_fits.model("a", 6, pinned=True, ttl_s=1.0)
    one_fits.run_model("a", 1)
    one_fits.leave(1)
    one_fits.wait(60.0)
    (refusal,) = one_fits.arrive(2, "b")
    assert isinstance(refusal, Refuse)
    assert refusal.kind == "no_room"
    assert refusal.reason == (
        "b needs 6.0 GiB, which the budget of 10.0 GiB does not have beside a (6.0 GiB), which stay (--memory-budget)."
    )


def test_two_waiting_models_do_not_count_on_the_same_victim():
    """llama.cpp #28443: both counted on it, one waited for ever."""
    story = Story(memory_budget_bytes=10 * GIB)
    for name in ("a", "b", "c", "d"):
        story.model(name, 5)
    story.run_model("a", 1)
    story.run_model("b", 2)
    story.leave(1)
    story.leave(2)
    story.wait(10.0)
    assert story.arrive(3, "c") == [Stop("a")]
    assert story.arrive(4, "d") == [Stop("b")]
    assert story.ended("b") == [Start("c")]
    assert story.ended("a") == [Start("d")]


def test_two_waiting_models_stop_the_streams_of_two_victims():
    story = Story(max_running=2)
    for name in ("a", "b", "c", "d"):
        story.model(name)
    story.run_model("a", 1)
    story.run_model("b", 2)
    story.arrive(3, "c")
    story.arrive(4, "d")
    story.wait(9.0)
    assert story.arrive(5, "a") == [Admit(5)]
    assert story.arrive(6, "b") == [Admit(6)]
    story.wait(1.1)
    assert story.arrive(7, "a") == []
    assert story.arrive(8, "b") == []


def test_a_model_that_was_stopped_for_another_one_waits_behind_it():
    """Its waiters are older, because they have waited for its limit of concurrency."""
    story = Story(max_running=1)
    story.model("a", concurrency=1)
    story.model("b")
    for ticket in (1, 2, 3):
        story.arrive(ticket, "a")
    story.ready("a", 1.0)
    story.arrive(4, "b")
    story.wait(10.1)
    assert story.leave(1) == [Stop("a")]
    assert story.ended("a") == [Start("b")]


def test_a_later_small_model_does_not_take_the_room_of_an_earlier_large_one():
    story = Story(memory_budget_bytes=10 * GIB)
    story.model("a", 6)
    story.model("large", 10)
    story.model("small", 4)
    story.run_model("a", 1)
    story.arrive(2, "large")
    assert story.arrive(3, "small") == []
    story.wait(3.0)
    assert story.leave(1) == [Stop("a")]
    assert story.ended("a") == [Start("large")]


def test_the_victim_is_the_one_that_costs_least():
    story = Story(max_running=2)
    for name in ("slow", "fast", "new"):
        story.model(name)
    story.arrive(1, "slow")
    story.ready("slow", 60.0)
    story.arrive(2, "fast")
    story.ready("fast", 1.0)
    story.leave(1)
    story.leave(2)
    story.wait(10.0)
    assert story.arrive(3, "new") == [Stop("fast")], "both are idle for equally long"


def test_of_equal_victims_the_one_that_was_used_longest_ago_is_stopped():
    story = Story(max_running=2)
    for name in ("a", "b", "c"):
        story.model(name)
    story.run_model("a", 1)
    story.run_model("b", 2)
    story.leave(2)
    story.wait(5.0)
    story.leave(1)
    story.wait(5.0)
    assert story.arrive(3, "c") == [Stop("b")]


def test_no_more_models_are_stopped_than_are_needed():
    story = Story(memory_budget_bytes=10 * GIB)
    for name, gib in (("small", 2), ("large", 8), ("new", 7)):
        story.model(name, gib)
    story.arrive(1, "small")
    story.ready("small", 1.0)
    story.arrive(2, "large")
    story.ready("large", 9.0)
    story.leave(1)
    story.leave(2)
    story.wait(5.0)
    assert story.arrive(3, "new") == [Stop("large")], "the cheap small one does not suffice, and is not needed"


def test_a_model_stays_for_a_minimum():
    story = Story(max_running=1, min_stay_s=3.0)
    story.model("a")
    story.model("b")
    story.run_model("a", 1)
    story.leave(1)
    assert story.arrive(2, "b") == []
    assert story.wait(2.9) == []
    assert story.wait(0.2) == [Stop("a")]


def test_waiters_of_a_ready_model_are_served_before_a_swap():
    """llama-swap #612: A B A A C becomes A A A B C."""
    story = Story(max_running=1)
    for name in ("a", "b", "c"):
        story.model(name)
    for ticket, name in enumerate("abaac", start=1):
        story.arrive(ticket, name)
    assert story.ready("a") == [Admit(1), Admit(3), Admit(4)]
    story.wait(3.0)
    for ticket in (1, 3):
        assert story.leave(ticket) == []
    assert story.leave(4) == [Stop("a")]
    assert story.ended("a") == [Start("b")]


def test_after_max_wait_new_requests_for_the_victim_wait_behind_the_swap():
    story = Story(max_running=1, max_wait_s=10.0)
    story.model("a")
    story.model("b")
    story.run_model("a", 1)
    story.arrive(2, "b")
    story.wait(9.9)
    assert story.arrive(3, "a") == [Admit(3)]
    story.wait(0.2)
    assert story.arrive(4, "a") == []
    story.leave(1)
    assert story.leave(3) == [Stop("a")]
    assert story.ended("a") == [Start("b")]
    assert story.ready("b", 1.0) == [Admit(2)]
    story.wait(2.0)
    assert story.leave(2) == [Stop("b")]
    assert story.ended("b") == [Start("a")]
    assert story.ready("a", 1.0) == [Admit(4)]


def test_a_victim_admits_again_if_nobody_waits_for_its_room():
    story = Story(max_running=1)
    story.model("a")
    story.model("b")
    story.run_model("a", 1)
    story.arrive(2, "b")
    story.wait(10.1)
    assert story.arrive(3, "a") == []
    assert story.leave(2) == [Admit(3)]


def test_a_victim_that_was_claimed_by_a_later_model_goes_to_the_first():
    """Found by a random world: both waited for ever when the oldest waiter of the claiming model left."""
    story = Story(max_running=1, max_wait_s=5.0)
    for name in ("a", "b", "c"):
        story.model(name)
    story.run_model("a", 1)
    story.arrive(2, "b")
    story.wait(1.0)
    story.arrive(3, "c")
    story.wait(4.5)  # b has claimed a
    story.arrive(4, "b")
    story.leave(2)  # now c waits longer than b
    assert story.leave(1) == [Stop("a")]
    assert story.ended("a") == [Start("c")]


@pytest.mark.parametrize(("gap_s", "most_starts"), [(0.0, 2 * (200 / 10 + 1)), (0.5, 2 * (200 / 2 + 1))])
def test_streams_for_two_models_swap_seldom_and_nobody_starves(gap_s, most_starts):
    """200 s of requests of 0.4 s for both, with room for one; start and stop take 0.5 s together."""
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
                agenda.append((story.now + start_s / 2, len(agenda), partial(story.ended, action.model)))
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


# Exclusions and limits


def test_an_excluded_model_is_stopped_first():
    story = Story()
    story.model("a")
    story.model("b", excludes=frozenset({"a"}))
    story.run_model("a", 1)
    story.wait(5.0)
    assert story.arrive(2, "b") == []
    assert story.leave(1) == [Stop("a")]
    assert story.ended("a") == [Start("b")]


def test_exclusion_has_a_direction():
    story = Story()
    story.model("a")
    story.model("b", excludes=frozenset({"a"}))
    story.run_model("b", 1)
    assert story.arrive(2, "a") == [Start("a")]


def test_models_that_exclude_each_other_start_one_after_the_other():
    story = Story()
    story.model("a", excludes=frozenset({"b"}))
    story.model("b", excludes=frozenset({"a"}))
    assert story.arrive(1, "a") == [Start("a")]
    assert story.arrive(2, "b") == []
    story.ready("a")
    story.wait(2.0)
    assert story.leave(1) == [Stop("a")]
    assert story.ended("a") == [Start("b")]


def test_a_model_waits_for_an_earlier_one_that_excludes_it():
    story = Story()
    for name in ("a", "c"):
        story.model(name)
    story.model("b", excludes=frozenset({"a", "c"}))
    story.run_model("a", 1)
    story.arrive(2, "b")
    story.wait(0.1)
    assert story.arrive(3, "c") == [], "else b would wait for c, too"
    story.wait(2.0)
    assert story.leave(1) == [Stop("a")]
    assert story.ended("a") == [Start("b"), Start("c")]


def test_draining_models_count_for_max_running():
    story = Story(max_running=1)
    story.model("a")
    story.model("b")
    story.run_model("a", 1)
    story.leave(1)
    assert story.unload("a") == [Stop("a")]
    assert story.arrive(2, "b") == []
    assert story.ended("a") == [Start("b")]


# Memory


def test_a_start_waits_until_the_memory_is_really_free():
    """FMA #709: the memory of a stopped model comes back late."""
    story = Story(free=10 * GIB, memory_budget_bytes=10 * GIB)
    story.model("a", 6)
    story.model("b", 6)
    story.run_model("a", 1)
    story.free = 4 * GIB
    story.wait(5.0)
    story.arrive(2, "b")
    assert story.leave(1) == [Stop("a")]
    assert story.ended("a") == []
    assert story.wait(1.5) == []
    story.free = 10 * GIB
    assert story.wait(0.2) == [Start("b")]


def test_the_wait_for_memory_ends_with_the_sums():
    story = Story(free=5 * GIB, memory_budget_bytes=100 * GIB, memory_wait_s=10.0)
    story.model("a", 1, pinned=True)
    story.model("b", 6)
    story.run_model("a", 1)
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


def test_a_model_is_stopped_if_other_programs_have_taken_the_memory():
    """The budget has room, the machine has not."""
    story = Story(free=10 * GIB, memory_budget_bytes=100 * GIB)
    story.model("a", 6)
    story.model("b", 6)
    story.run_model("a", 1)
    story.leave(1)
    story.free = 4 * GIB
    story.wait(5.0)
    assert story.arrive(2, "b") == [Stop("a")]


def test_late_memory_of_one_model_does_not_stop_another():
    story = Story(free=20 * GIB)
    story.model("a", 6)
    story.model("b", 6)
    story.model("c", 10)
    story.run_model("a", 1)
    story.run_model("b", 2)
    story.leave(1)
    story.leave(2)
    story.free = 8 * GIB
    story.wait(5.0)
    assert story.arrive(3, "c") == [Stop("a")]
    assert story.ended("a") == []
    assert story.wait(1.0) == []
    story.free = 14 * GIB
    assert story.wait(0.2) == [Start("c")]


def test_memory_that_a_starting_model_has_not_taken_is_not_free():
    story = Story(free=10 * GIB)
    for name in ("a", "b"):
        story.model(name, 6)
    assert story.arrive(1, "a") == [Start("a")]
    assert story.arrive(2, "b") == []
    story.free = 9 * GIB
    assert story.measured("a", 1) == []
    story.free = 6 * GIB  # after the end of another program
    assert story.measured("a", 6) == [Start("b")]


def test_memory_that_a_stopped_start_may_still_take_is_not_free():
    """Found by a random world: the process took it between the reading and its end."""
    story = Story(free=10 * GIB)
    for name in ("a", "b"):
        story.model(name, 6)
    story.arrive(1, "a")
    story.leave(1)
    assert story.unload("a") == [Stop("a")]
    assert story.arrive(2, "b") == []
    assert story.wait(5.0) == []
    assert story.ended("a") == [Start("b")]


def test_the_measurement_replaces_the_estimate():
    """llama-swap #158: memory was guessed."""
    story = Story(memory_budget_bytes=10 * GIB)
    story.model("a", 8)
    story.model("b", 6)
    story.run_model("a", 1)
    story.measured("a", 4)
    assert story.arrive(2, "b") == [Start("b")]
    story.measured("a", 5)
    story.measured("a", 3)
    assert story.scheduler.view()["a"].need == Need(5 * GIB), "the most that was seen"


def test_a_measurement_during_the_start_does_not_lower_the_need():
    story = Story()
    story.model("a", 8)
    story.arrive(1, "a")
    story.measured("a", 1)
    assert story.scheduler.view()["a"].need == Need(8 * GIB)


def test_a_model_that_grew_above_the_budget_runs_alone():
    story = Story(memory_budget_bytes=10 * GIB)
    story.model("a", 8)
    story.run_model("a", 1)
    story.measured("a", 11)
    story.leave(1)
    story.unload("a")
    story.ended("a")
    assert story.arrive(2, "a") == [Start("a")]


def test_memory_of_gpus_counts_like_that_of_the_machine():
    scheduler = Scheduler(SchedulerLimits(), Need(100 * GIB, 80 * GIB), 0.0)
    rules = {name: ModelRules(need=Need(GIB, 70 * GIB)) for name in ("a", "b")}
    scheduler.set_models(rules, 0.0)
    assert scheduler.arrive(1, "a", 0.1) == [Start("a")]
    assert scheduler.arrive(2, "b", 0.2) == []
    assert scheduler.view()["b"].state == "stopped"


# Failures


def test_a_failed_start_answers_all_waiters_and_harms_no_other_model(one_fits):
    """llama-swap #92, FMA #444, ray #63065."""
    one_fits.arrive(1, "a")
    one_fits.arrive(2, "a")
    one_fits.arrive(3, "b")
    actions = one_fits.ended("a", "no weights")
    assert refusals(actions) == {1: "failed", 2: "failed"}
    assert Start("b") in actions
    (refusal,) = one_fits.arrive(4, "a")
    assert refusal == Refuse(4, "failed", "no weights", 1)


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
    assert one_fits.load(22, "a") == [Start("a")]
    assert one_fits.ready("a") == [Admit(22)]


def test_a_model_that_ends_by_itself_is_started_again_on_request():
    story = Story()
    story.model("a", concurrency=1)
    story.run_model("a", 1)
    story.arrive(2, "a")
    assert story.ended("a", "killed by signal 9", after_s=60.0) == []
    assert story.state("a") == "failed"
    assert refusals(story.arrive(3, "a")) == {3: "failed"}
    assert story.wait(1.0) == [Start("a")], "for the one that waited"
    assert story.ready("a") == [Admit(2)]


def test_a_model_that_dies_soon_after_each_start_pauses_longer():
    story = Story()
    story.model("a")
    for ticket, pause_s in enumerate((1, 2, 4), start=1):
        story.run_model("a", ticket)
        story.ended("a", "killed")
        assert story.scheduler.view()["a"].retry_at_s == story.now + pause_s
        story.wait(pause_s)
    story.run_model("a", 9)
    story.ended("a", "killed", after_s=60.0)
    assert story.scheduler.view()["a"].retry_at_s == story.now + 1


# By hand, idle, reload, drain


def test_ttl_counts_from_the_end_of_the_last_request_and_never_during_a_start():
    """llama-swap #289."""
    story = Story()
    story.model("a", ttl_s=10.0)
    story.arrive(1, "a")
    assert story.wait(60.0) == []
    story.ready("a")
    assert story.wait(60.0) == []
    story.leave(1)
    assert story.wait(9.9) == []
    story.arrive(2, "a")
    story.leave(2)
    assert story.wait(9.9) == []
    assert story.wait(0.2) == [Stop("a")]


def test_unload_waits_for_leases_and_requests_that_wait_start_it_again():
    story = Story()
    story.model("a")
    story.run_model("a", 1)
    assert story.unload("a") == []
    assert story.state("a") == "draining"
    assert story.arrive(2, "a") == []
    assert story.unload("a") == []
    assert story.leave(1) == [Stop("a")]
    assert story.ended("a") == [Start("a")]
    assert story.ready("a") == [Admit(2)]


def test_a_loaded_model_is_an_ordinary_victim(one_fits):
    """LM Studio #2051."""
    one_fits.load(1, "a")
    assert one_fits.ready("a", 1.0) == [Admit(1)]
    one_fits.leave(1)
    one_fits.wait(2.0)
    assert one_fits.arrive(2, "b") == [Stop("a")]


def test_a_load_is_not_delayed_by_limits_of_requests():
    story = Story(max_waiting=1)
    story.model("a", concurrency=1)
    story.arrive(1, "a")
    assert story.load(2, "a") == []
    assert story.ready("a") == [Admit(2)]
    assert story.leave(2) == [Admit(1)]
    assert story.load(3, "a") == [Admit(3)]


def test_a_reload_touches_only_what_changed():
    """llama-swap #281: edits duplicated processes."""
    story = Story()
    for name in ("same", "changed", "removed"):
        story.model(name)
        story.run_model(name, len(story.rules))
    del story.rules["removed"]
    story.rules["added"] = ModelRules()
    assert story.set_models(restart=("changed",)) == []
    assert {name: story.state(name) for name in ("same", "changed", "removed", "added")} == {
        "same": "ready",
        "changed": "draining",
        "removed": "draining",
        "added": "stopped",
    }
    assert story.arrive(11, "same") == [Admit(11)]
    assert story.arrive(12, "changed") == []
    assert refusals(story.arrive(13, "removed")) == {13: "removed"}
    assert story.leave(2) == [Stop("changed")]
    assert story.ended("changed") == [Start("changed")]
    assert story.leave(3) == [Stop("removed")]
    assert story.ended("removed") == []
    assert "removed" not in story.scheduler.view()


def test_a_removed_model_refuses_its_waiters_and_may_come_back_before_its_process_ends():
    story = Story()
    story.model("a")
    story.arrive(1, "a")
    rules = story.rules.pop("a")
    actions = story.set_models()
    assert refusals(actions) == {1: "removed"}
    assert Stop("a") in actions
    story.rules["a"] = rules
    story.set_models()
    assert story.arrive(2, "a") == []
    assert story.ended("a") == [Start("a")]


def test_a_hundred_edits_of_a_running_model_leave_one_process():
    story = Story()
    story.model("a")
    story.run_model("a", 1)
    story.arrive(2, "a")
    for _ in range(100):
        assert story.set_models(restart=("a",)) == []
    assert story.leave(1) == []
    assert story.leave(2) == [Stop("a")]
    assert story.starts == ["a"]


def test_a_changed_model_has_no_pause():
    """The file was repaired."""
    story = Story()
    story.model("a")
    story.arrive(1, "a")
    story.ended("a", "no such file")
    story.set_models(restart=("a",))
    assert story.arrive(2, "a") == [Start("a")]


def test_drain_refuses_what_waits_and_stops_all_after_their_leases(one_fits):
    one_fits.run_model("a", 1)
    one_fits.arrive(2, "b")
    assert refusals(one_fits.drain()) == {2: "shutting_down"}
    assert refusals(one_fits.arrive(3, "a")) == {3: "shutting_down"}
    assert one_fits.leave(1) == [Stop("a")]
    assert one_fits.ended("a") == []
    assert one_fits.scheduler.next_tick_s(one_fits.now) is None


# Costs


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
                assert len(story.scheduler.ended("a", "no weights", 1.0)) == number
                return
            if ends == "admitted":
                story.scheduler.became_ready("a", 1.0)
            for ticket in range(number):
                story.scheduler.leave(ticket, 2.0)
            assert story.scheduler.view()["a"].num_waiting == 0

        return work

    assert growth(prepare) is None
