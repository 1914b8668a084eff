"""Progress grows and never says that a start is done before it is; the ETA comes from earlier starts."""

import os
import time

import pytest

from startup.timeline.history import EarlierStarts
from startup.timeline.progress import ProgressMeter
from startup.timeline.record import StartRecord
from startup.timeline.timeline import PhaseTimeline
from tests.startup.timeline.start_reports import report_of

NS = 1_000_000_000
NOW_NS = 5_000 * NS


@pytest.fixture(autouse=True)
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is estimated depends on the moment, and so the moment does not pass."""
    monkeypatch.setattr(time, "monotonic_ns", lambda: NOW_NS)


def earlier_starts() -> EarlierStarts:
    """Ready after 1.7 s: boot until 0.2, imports until 1.2, weights until 1.7."""
    return EarlierStarts((StartRecord.from_report(report_of(), "k"),))


def timeline_at(elapsed_s: float) -> PhaseTimeline:
    return PhaseTimeline(NOW_NS - round(elapsed_s * NS))


def test_without_history_the_phase_is_known_and_the_rest_is_not() -> None:
    timeline = timeline_at(0.5)
    with timeline.span("import_server"):
        look = ProgressMeter(timeline).read()
    assert (look.phase, look.progress, look.eta_s) == ("import_server", None, None)
    assert look.elapsed_s == 0.5
    assert look.to_dict() == {"phase": "import_server", "progress": None, "elapsed_s": 0.5, "eta_s": None}


def test_between_two_phases_it_is_starting() -> None:
    assert ProgressMeter(timeline_at(0.5)).read().phase == "starting"


def test_what_is_left_is_the_rest_of_the_phase_and_what_usually_follows() -> None:
    timeline = timeline_at(0.2)
    timeline.observe("engine", "import_torch", timeline.origin_ns + round(0.2 * NS))
    look = ProgressMeter(timeline, earlier_starts()).read()
    assert look.eta_s == pytest.approx(1.5)
    assert look.progress == pytest.approx(0.2 / 1.7)


def test_a_phase_that_comes_late_moves_the_end() -> None:
    timeline = timeline_at(3.0)
    timeline.observe("engine", "load_weights", timeline.origin_ns + round(2.9 * NS))
    look = ProgressMeter(timeline, earlier_starts()).read()
    assert look.eta_s == pytest.approx(0.4)


def test_a_phase_that_takes_longer_than_ever_leaves_only_what_follows() -> None:
    timeline = timeline_at(8.0)
    timeline.observe("engine", "import_torch", timeline.origin_ns + round(0.2 * NS))
    assert ProgressMeter(timeline, earlier_starts()).read().eta_s == pytest.approx(0.5)


def test_an_unknown_phase_is_judged_by_the_clock() -> None:
    timeline = timeline_at(0.7)
    with timeline.span("never_seen"):
        look = ProgressMeter(timeline, earlier_starts()).read()
    assert look.eta_s == pytest.approx(1.0)


def test_progress_never_falls_and_stays_below_one_until_ready() -> None:
    timeline = timeline_at(1.6)
    meter = ProgressMeter(timeline, earlier_starts())
    timeline.observe("engine", "load_weights", timeline.origin_ns + round(1.2 * NS))
    high = meter.read().progress
    timeline.observe("engine", "import_torch", NOW_NS)
    low = meter.read().progress
    assert high is not None
    assert low is not None
    assert 0.8 < high <= low < 1
    assert ProgressMeter(timeline_at(900), earlier_starts()).read().progress == 0.99


def test_progress_never_falls_below_what_another_process_has_told() -> None:
    """The responder, whose clients the HTTP server takes over."""
    timeline = timeline_at(1.6)
    meter = ProgressMeter(timeline, earlier_starts())
    timeline.observe("engine", "load_weights", timeline.origin_ns + round(1.2 * NS))
    told_here, told_there = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(told_there, repr(meter.read().progress).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(told_there)
    with os.fdopen(told_here) as told:
        high = float(told.read())
    timeline.observe("engine", "import_torch", NOW_NS)
    low = meter.read().progress
    assert low is not None
    assert 0.8 < high <= low < 1


def test_a_finished_start_is_ready() -> None:
    timeline = timeline_at(1.0)
    timeline.finish()
    look = ProgressMeter(timeline, earlier_starts()).read()
    assert (look.phase, look.progress, look.eta_s) == ("ready", 1.0, 0.0)


def test_the_line_for_a_terminal_has_phase_bar_and_time_left() -> None:
    timeline = timeline_at(0.2)
    timeline.observe("engine", "load_weights", NOW_NS)
    line = str(ProgressMeter(timeline, earlier_starts()).read())
    assert "load weights" in line
    assert "[######" in line
    assert "about 0.5 s left" in line
