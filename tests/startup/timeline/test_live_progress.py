"""Without a terminal, a phase that takes long is one line in the log, while it runs."""

import io
import logging
import sys

import pytest

from startup.timeline.progress import LiveProgress, ProgressMeter
from startup.timeline.timeline import PhaseTimeline
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())


@pytest.fixture
def timeline() -> PhaseTimeline:
    return PhaseTimeline.from_process_start()


def test_a_long_phase_is_logged_once_while_it_runs(timeline, caplog):
    caplog.set_level(logging.INFO)
    meter = ProgressMeter(timeline)
    with LiveProgress(meter, long_phase_s=0.02):
        meter.detail = "3 of 7 files"
        with timeline.span("resolve_model"):
            wait_until(lambda: "resolve model: 3 of 7 files" in caplog.text)
        meter.detail = ""
        with timeline.span("import_server"):
            wait_until(lambda: "import server" in caplog.text)
        with timeline.span("resolve_model"), timeline.span("another"):
            wait_until(lambda: "another" in caplog.text)
    phases = [record.getMessage().partition("s: ")[2] for record in caplog.records]
    assert [phase for phase in phases if phase != "starting"] == [
        "resolve model: 3 of 7 files",
        "import server",
        "another",
    ]


def test_short_phases_are_not_logged(timeline, caplog):
    caplog.set_level(logging.INFO)
    with LiveProgress(ProgressMeter(timeline)):
        for number in range(100):
            with timeline.span(f"phase_{number}"):
                pass
    assert caplog.records == []
