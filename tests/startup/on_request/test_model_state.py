"""The states of a model that is started on request, with a clock of the test."""

import random

import pytest

from startup.on_request.model_state import TRANSITIONS, ModelState


def _ready() -> ModelState:
    model = ModelState(0.0)
    model.become_ready(1.0)
    return model


def _stopped() -> ModelState:
    model = _ready()
    model.pause(2.0)
    model.begin_stop(2.0)
    model.end("", 3.0)
    return model


def test_an_idle_model_stops_and_is_woken() -> None:
    model = _stopped()
    assert (model.state, model.since_s, model.num_idle_stops, model.reason) == ("stopped", 3.0, 1, "")
    assert model.may_start(3.0)
    model.wake(4.0)
    assert (model.state, model.num_wakes, model.may_start(9.0)) == ("starting", 1, False)


def test_a_pause_may_end_without_a_stop() -> None:
    model = _ready()
    model.pause(2.0)
    model.resume(3.0)
    assert (model.state, model.num_idle_stops) == ("ready", 0)


def test_failures_are_retried_ever_later_until_a_start_succeeds() -> None:
    model, now, delays = _ready(), 10.0, []
    for _ in range(8):
        model.end("it crashed", now)
        assert (model.state, model.reason) == ("failed", "it crashed")
        delays.append(model.retry_after_s(now))
        assert not model.may_start(now + delays[-1] - 0.1)
        now += delays[-1]
        assert model.may_start(now)
        model.wake(now)
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60]
    model.become_ready(now)
    assert model.reason == ""
    model.end("again", now)
    assert model.retry_after_s(now) == 1


def test_a_server_that_ends_while_it_looks_whether_it_is_idle_has_failed() -> None:
    model = _ready()
    model.pause(2.0)
    model.end("killed", 3.0)
    assert model.state == "failed"


def test_random_events_lead_to_legal_transitions_only() -> None:
    """A server's messages may come in any order, as a hung or faulty one sends them."""
    for seed in range(200):
        choose, now, model = random.Random(seed), 0.0, ModelState(0.0)
        for _ in range(60):
            before, now = model.state, now + choose.random()
            choose.choice([model.pause, model.resume, model.begin_stop])(now)
            if model.has_server and choose.random() < 0.3:
                model.end("over", now)
            elif model.may_start(now):
                model.wake(now)
            elif model.state == "starting":
                model.become_ready(now)
            assert model.state == before or _can_follow(before, model.state)


def _can_follow(before: str, after: str) -> bool:
    """In at most two steps: a message, and another event."""
    first = {str(state) for state in TRANSITIONS[before]}  # type: ignore[index]
    return after in first | {str(state) for each in first for state in TRANSITIONS[each]}  # type: ignore[index]


def test_an_event_that_the_state_does_not_allow_is_a_defect() -> None:
    with pytest.raises(RuntimeError, match="stopped cannot become ready"):
        _stopped().become_ready(5.0)
