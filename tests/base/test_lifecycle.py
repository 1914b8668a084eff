"""The lifecycle's states, transitions and subscribers."""

import pytest

from base.lifecycle import TRANSITIONS, IllegalTransitionError, Lifecycle, State

STATES: tuple[State, ...] = ("starting", "ready", "restarting", "draining", "dead")

LEGAL = [
    ("starting", "engine_ready", "ready"),
    ("starting", "drain", "draining"),
    ("starting", "engine_ended", "dead"),
    ("ready", "engine_ended", "restarting"),
    ("ready", "drain", "draining"),
    ("restarting", "begin_restart", "restarting"),
    ("restarting", "engine_ready", "ready"),
    ("restarting", "engine_ended", "restarting"),
    ("restarting", "drain", "draining"),
    ("draining", "engine_ready", "draining"),
    ("draining", "engine_ended", "dead"),
    ("dead", "engine_ended", "dead"),
]
"""State, event, next state, with one restart left."""

ILLEGAL = [
    ("starting", "begin_restart"),
    ("ready", "engine_ready"),
    ("ready", "begin_restart"),
    ("draining", "drain"),
    ("draining", "begin_restart"),
    ("dead", "engine_ready"),
    ("dead", "begin_restart"),
    ("dead", "drain"),
]


def _in_state(state: State) -> Lifecycle:
    lifecycle = Lifecycle(num_restarts=1)
    if state in ("ready", "restarting"):
        lifecycle.engine_ready()
    if state in ("restarting", "dead"):
        lifecycle.engine_ended("killed")
    if state == "draining":
        lifecycle.drain()
    assert lifecycle.state == state
    return lifecycle


def _send(lifecycle: Lifecycle, event: str) -> None:
    arguments = ("killed again",) if event == "engine_ended" else ()
    getattr(lifecycle, event)(*arguments)


@pytest.mark.parametrize(("state", "event", "following"), LEGAL)
def test_legal_event_leads_to_the_following_state(state, event, following):
    lifecycle = _in_state(state)
    seen: list[State] = []
    lifecycle.subscribe(seen.append)
    _send(lifecycle, event)
    assert lifecycle.state == following
    assert seen == ([following] if following != state else []), "subscribers are called on transitions only"
    assert following == state or following in TRANSITIONS[state]


@pytest.mark.parametrize(("state", "event"), ILLEGAL)
def test_illegal_event_raises_and_changes_nothing(state, event):
    lifecycle = _in_state(state)
    seen: list[State] = []
    lifecycle.subscribe(seen.append)
    before = (lifecycle.state, lifecycle.reason, lifecycle.has_engine, lifecycle.num_restarts_left)
    with pytest.raises(IllegalTransitionError, match=state):
        _send(lifecycle, event)
    assert (lifecycle.state, lifecycle.reason, lifecycle.has_engine, lifecycle.num_restarts_left) == before
    assert not seen


def test_the_tables_name_every_state_and_event_once():
    assert set(TRANSITIONS) == set(STATES)
    events = ("engine_ready", "engine_ended", "begin_restart", "drain")
    pairs = [(state, event) for state, event, _ in LEGAL] + ILLEGAL
    assert sorted(pairs) == sorted((state, event) for state in STATES for event in events)


@pytest.mark.parametrize("state", ["ready", "restarting"])
def test_engine_that_ends_without_restarts_left_leaves_a_dead_server(state):
    lifecycle = _in_state(state)
    lifecycle.num_restarts_left = 0
    lifecycle.engine_ended("killed for good")
    assert (lifecycle.state, lifecycle.reason) == ("dead", "killed for good")
    with pytest.raises(IllegalTransitionError):
        lifecycle.begin_restart()


def test_drain_forbids_restarts():
    lifecycle = _in_state("restarting")
    lifecycle.begin_restart()
    lifecycle.drain()
    assert lifecycle.num_restarts_left == 0
    lifecycle.engine_ended("the new one failed")
    assert lifecycle.state == "dead"


def test_restart_time_runs_from_the_restart_s_begin_until_readiness(monkeypatch):
    lifecycle = _in_state("restarting")
    assert lifecycle.restart_elapsed_s == 0.0
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    lifecycle.begin_restart()
    monkeypatch.setattr("time.monotonic", lambda: 102.5)
    assert lifecycle.restart_elapsed_s == 2.5
    lifecycle.engine_ready()
    assert lifecycle.restart_elapsed_s == 0.0


def test_reason_lasts_from_the_engine_s_end_until_the_next_one_is_ready():
    lifecycle = _in_state("ready")
    assert lifecycle.reason is None
    lifecycle.engine_ended("its process is ending")
    lifecycle.engine_ended("killed by signal 9")
    assert lifecycle.reason == "killed by signal 9"
    lifecycle.begin_restart()
    lifecycle.engine_ready()
    assert lifecycle.reason is None


def test_there_is_an_engine_from_its_readiness_to_its_end_also_in_a_drain():
    assert [state for state in STATES if _in_state(state).has_engine] == ["ready"]
    lifecycle = _in_state("ready")
    lifecycle.drain()
    assert lifecycle.has_engine
    lifecycle.engine_ended("killed")
    assert not lifecycle.has_engine


def test_subscribers_are_called_in_order_and_see_the_new_state():
    lifecycle = Lifecycle()
    seen: list[tuple[str, State, State]] = []
    lifecycle.subscribe(lambda state: seen.append(("first", state, lifecycle.state)))
    lifecycle.subscribe(lambda state: seen.append(("second", state, lifecycle.state)))
    lifecycle.engine_ready()
    assert seen == [("first", "ready", "ready"), ("second", "ready", "ready")]
