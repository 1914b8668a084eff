from itertools import product

import pytest

from base.lifecycle import TRANSITIONS, IllegalTransitionError, Lifecycle, State

STATES: tuple[State, ...] = ("starting", "ready", "draining", "dead")

LEGAL = [
    ("starting", "engine_ready", "ready"),
    ("starting", "drain", "draining"),
    ("starting", "engine_ended", "dead"),
    ("ready", "engine_ended", "dead"),
    ("ready", "drain", "draining"),
    ("draining", "engine_ready", "draining"),
    ("draining", "engine_ended", "dead"),
    ("dead", "engine_ended", "dead"),
]
"""State, event, next state."""

EVENTS = ("engine_ready", "engine_ended", "drain")
ILLEGAL = sorted({*product(STATES, EVENTS)} - {(state, event) for state, event, _ in LEGAL})


def _in_state(state: State) -> Lifecycle:
    lifecycle = Lifecycle()
    if state != "starting":
        _send(lifecycle, {"ready": "engine_ready", "dead": "engine_ended", "draining": "drain"}[state])
    assert lifecycle.state == state
    return lifecycle


def _send(lifecycle: Lifecycle, event: str) -> None:
    arguments = ("killed",) if event == "engine_ended" else ()
    getattr(lifecycle, event)(*arguments)


@pytest.mark.parametrize(("state", "event", "following"), LEGAL)
def test_legal_event_leads_to_the_following_state(state, event, following):
    """On transitions only, subscribers are called in order, and see the new state."""
    lifecycle = _in_state(state)
    seen: list[tuple[int, State, State]] = []
    for number in (1, 2):
        lifecycle.subscribe(lambda new, number=number: seen.append((number, new, lifecycle.state)))
    _send(lifecycle, event)
    assert lifecycle.state == following
    assert seen == [(number, following, following) for number in (1, 2) if following != state]
    assert following == state or following in TRANSITIONS[state]


@pytest.mark.parametrize(("state", "event"), ILLEGAL)
def test_illegal_event_raises_and_changes_nothing(state, event):
    lifecycle = _in_state(state)
    seen: list[State] = []
    lifecycle.subscribe(seen.append)
    before = (lifecycle.state, lifecycle.reason, lifecycle.has_engine)
    with pytest.raises(IllegalTransitionError, match=state):
        _send(lifecycle, event)
    assert (lifecycle.state, lifecycle.reason, lifecycle.has_engine) == before
    assert not seen


def test_there_is_an_engine_from_its_readiness_to_its_end_also_in_a_drain():
    assert [state for state in STATES if _in_state(state).has_engine] == ["ready"]
    lifecycle = _in_state("ready")
    lifecycle.drain()
    assert (lifecycle.has_engine, lifecycle.reason) == (True, None)
    for reason in ("its process is ending", "killed by signal 9"):
        lifecycle.engine_ended(reason)
        assert (lifecycle.has_engine, lifecycle.reason) == (False, reason), "a better reason replaces the first one"
