"""Progress never falls and stays below 1 until the start is ready; the ETA comes from earlier starts."""

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
    """Estimates depend on the current time, which therefore stands still."""
    monkeypatch.setattr(time, "monotonic_ns", lambda: NOW_NS)


def earlier_starts() -> EarlierStarts:
    """Ready after 1.7 s: boot until 0.2, imports until 1.2, weights until 1.7."""
    return EarlierStarts((StartRecord.from_report(report_of(), "k"),))


def timeline_at(elapsed_s: float) -> PhaseTimeline:
    return PhaseTimeline(NOW_NS - round(elapsed_s * NS))


def test_without_history_only_the_phase_is_known() -> None:
    timeline = timeline_at(0.5)
    with timeline.span("import_server"):
        current = ProgressMeter(timeline).read()
    assert (current.phase, current.progress, current.eta_s) == ("import_server", None, None)
    assert current.elapsed_s == 0.5
    assert current.to_dict() == {"phase": "import_server", "progress": None, "elapsed_s": 0.5, "eta_s": None}


def test_between_two_phases_the_phase_is_starting() -> None:
    assert ProgressMeter(timeline_at(0.5)).read().phase == "starting"


def test_remaining_time_is_the_rest_of_the_phase_and_the_usual_time_after_it() -> None:
    timeline = timeline_at(0.2)
    timeline.observe("engine", "import_torch", timeline.origin_ns + round(0.2 * NS))
    current = ProgressMeter(timeline, earlier_starts()).read()
    assert current.eta_s == pytest.approx(1.5)
    assert current.progress == pytest.approx(0.2 / 1.7)


def test_a_phase_that_begins_late_moves_the_end() -> None:
    timeline = timeline_at(3.0)
    timeline.observe("engine", "load_weights", timeline.origin_ns + round(2.9 * NS))
    current = ProgressMeter(timeline, earlier_starts()).read()
    assert current.eta_s == pytest.approx(0.4)


def test_a_phase_that_exceeds_its_usual_time_leaves_the_time_after_it() -> None:
    timeline = timeline_at(8.0)
    timeline.observe("engine", "import_torch", timeline.origin_ns + round(0.2 * NS))
    assert ProgressMeter(timeline, earlier_starts()).read().eta_s == pytest.approx(0.5)


def test_an_unknown_phase_is_estimated_from_the_total() -> None:
    timeline = timeline_at(0.7)
    with timeline.span("never_seen"):
        current = ProgressMeter(timeline, earlier_starts()).read()
    assert current.eta_s == pytest.approx(1.0)


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


def test_progress_never_falls_below_the_value_that_the_responder_reported() -> None:
    """Its clients become clients of the HTTP server."""
    timeline = timeline_at(1.6)
    meter = ProgressMeter(timeline, earlier_starts())
    timeline.observe("engine", "load_weights", timeline.origin_ns + round(1.2 * NS))
    read_fd, write_fd = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(write_fd, repr(meter.read().progress).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write_fd)
    with os.fdopen(read_fd) as pipe:
        high = float(pipe.read())
    timeline.observe("engine", "import_torch", NOW_NS)
    low = meter.read().progress
    assert low is not None
    assert 0.8 < high <= low < 1


def test_a_finished_start_is_ready() -> None:
    timeline = timeline_at(1.0)
    timeline.finish()
    current = ProgressMeter(timeline, earlier_starts()).read()
    assert (current.phase, current.progress, current.eta_s) == ("ready", 1.0, 0.0)


def test_the_line_for_a_terminal_has_phase_bar_and_time_left() -> None:
    timeline = timeline_at(0.2)
    timeline.observe("engine", "load_weights", NOW_NS)
    line = str(ProgressMeter(timeline, earlier_starts()).read())
    assert "load weights" in line
    assert "[######" in line
    assert "about 0.5 s left" in line
