"""Progress never falls, and stays below 1 until the start is ready. The ETA comes from earlier starts."""

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from startup.reports.timeline.history import EarlierStarts, StartRecord
from startup.reports.timeline.progress import ProgressMeter
from startup.reports.timeline.timeline import PhaseTimeline
from tests.startup.reports.timeline.start_reports import report_of

NS = 1_000_000_000
NOW_NS = 5_000 * NS


class Clock:
    """A clock that only tests advance, because estimates depend on the current time."""

    now_ns = NOW_NS

    @contextmanager
    def span(self, timeline: PhaseTimeline, name: str, *, since_s: float) -> Iterator[None]:
        """Runs a phase during the block. It begins so many seconds after the start."""
        self.now_ns = timeline.origin_ns + round(since_s * NS)
        with timeline.span(name):
            self.now_ns = NOW_NS
            yield


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic_ns", lambda: clock.now_ns)
    return clock


def meter_of(timeline: PhaseTimeline) -> ProgressMeter:
    """A meter after a start with boot until 0.2 s, import_server until 0.5 s, wait_for_engine until 1.7 s."""
    meter = ProgressMeter(timeline)
    meter.earlier = EarlierStarts((StartRecord.from_report(report_of()),))
    return meter


def timeline_at(elapsed_s: float) -> PhaseTimeline:
    return PhaseTimeline(NOW_NS - round(elapsed_s * NS))


def test_without_history_only_the_phase_is_known():
    timeline = timeline_at(0.5)
    with timeline.span("import_server"):
        current = ProgressMeter(timeline).read()
    assert current.to_dict() == {"phase": "import_server", "progress": None, "elapsed_s": 0.5, "eta_s": None}


@pytest.mark.parametrize(("elapsed_s", "phase", "since_s", "eta_s"), [
    pytest.param(0.3, "import_server", 0.2, 0.2 + 1.2, id="rest of the phase and the usual time after it"),
    pytest.param(8.0, "import_server", 0.2, 1.2, id="a phase that exceeds its usual time"),
    pytest.param(0.7, "never_seen", 0.7, 1.0, id="an unknown phase: by the total"),
])  # fmt: skip
def test_the_time_left_comes_from_earlier_starts(elapsed_s, phase, since_s, eta_s, clock):
    timeline = timeline_at(elapsed_s)
    with clock.span(timeline, phase, since_s=since_s):
        current = meter_of(timeline).read()
    assert current.eta_s == pytest.approx(eta_s)
    assert current.progress == pytest.approx(elapsed_s / (elapsed_s + eta_s))


def read_in_fork(meter: ProgressMeter) -> float:
    """What a fork reports: clients of the responder become clients of the HTTP server."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=lambda: sender.send(meter.read().progress))
    process.start()
    process.join()
    return float(receiver.recv())


@pytest.mark.parametrize("read", [lambda meter: meter.read().progress, read_in_fork], ids=["same process", "fork"])
def test_progress_never_falls_and_stays_below_one_until_ready(read, clock):
    timeline = timeline_at(1.6)
    meter = meter_of(timeline)
    with clock.span(timeline, "wait_for_engine", since_s=0.5):
        high = read(meter)
    with clock.span(timeline, "import_server", since_s=1.6):
        assert 0.8 < high <= meter.read().progress < 1
    assert meter_of(timeline_at(900)).read().progress == 0.99


def test_a_finished_start_is_ready():
    timeline = timeline_at(1.0)
    timeline.finish()
    current = meter_of(timeline).read()
    assert (current.phase, current.progress, current.eta_s) == ("ready", 1.0, 0.0)


def test_the_line_for_a_terminal_has_phase_bar_and_time_left(clock):
    timeline = timeline_at(0.5)
    with clock.span(timeline, "wait_for_engine", since_s=0.5):
        line = str(meter_of(timeline).read())
    assert "wait for engine" in line
    assert "[######" in line
    assert "about 1.2 s left" in line
