"""The timeline begins with the kernel's start of the process, and the report has all of its data."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest

from base.machine.processes import process_start_ns
from startup.reports.timeline.report import SCHEMA_VERSION, StartFacts, build_report
from startup.reports.timeline.timeline import PhaseSpan, PhaseTimeline
from tests.startup.reports.timeline.start_reports import report_of
from tests.support.cli import python_output

SECOND = 1_000_000_000
TICK = 20_000_000
"""The tolerance: the kernel counts in ticks of 10 ms, and two clocks are read one after the other."""


def test_process_start_is_before_the_first_line_of_python():
    code = (
        "import time; begin = time.monotonic_ns()\n"
        "from base.machine.processes import process_start_ns\n"
        "print(process_start_ns(), begin)"
    )
    called = time.monotonic_ns()
    start, first_line = map(int, python_output(code).split())
    assert called - TICK <= start <= first_line + TICK


def test_a_delay_between_two_readings_of_the_clocks_does_not_change_the_result(monkeypatch):
    expected = process_start_ns()
    waits = iter([0.2])

    def read_late(read: Callable[[int], float], clock: int) -> float:
        time.sleep(next(waits, 0))
        return read(clock)

    for name in ("clock_gettime", "clock_gettime_ns"):
        monkeypatch.setattr(time, name, partial(read_late, getattr(time, name)))
    assert abs(process_start_ns() - expected) < TICK


def test_span_is_recorded_even_when_the_block_raises():
    timeline = PhaseTimeline(time.monotonic_ns())
    with suppress(ValueError), timeline.span("fails"):
        raise ValueError
    assert [s.name for s in timeline.spans] == ["fails"]


def test_table_shows_share_and_bar_of_each_long_phase_that_does_not_wait():
    timeline = PhaseTimeline(0)
    timeline.add("api", [("listen", 0, SECOND), ("brief", SECOND, SECOND + SECOND // 100)])
    timeline.spans.append(PhaseSpan("api", "wait", 2 * SECOND, 4 * SECOND, waits_for="engine"))
    timeline.add("engine", [("load", 3 * SECOND, 4 * SECOND), ("load", SECOND, 3 * SECOND)])
    timeline.end_ns = 4 * SECOND
    _, listen, load = build_report(timeline, StartFacts(model="m", start_method="spawn")).table().splitlines()
    assert listen.split() == ["0.000", "1.000", "25.0%", "api", "listen", "#" * 6]
    assert load.split() == ["1.000", "3.000", "75.0%", "engine", "load", "#" * 18]


def test_a_name_may_contain_its_process():
    timeline = PhaseTimeline(0)
    timeline.add("engine", [("forkserver:preload_imports", 0, 1), ("load_weights", 1, 2)])
    assert [span.key for span in timeline.spans] == ["forkserver:preload_imports", "engine:load_weights"]


def test_running_is_the_innermost_open_span():
    timeline = PhaseTimeline(time.monotonic_ns())
    assert timeline.running is None
    with timeline.span("outer"), timeline.span("inner"):
        assert timeline.running.name == "inner"  # type: ignore[attr-defined]
    assert timeline.running is None


def test_phases_have_the_work_of_all_processes_and_their_share():
    content = report_of().to_dict()
    names = ["boot", "read", "import_torch", "import_server", "load_weights"]
    assert [phase["name"] for phase in content["phases"]] == names
    assert content["phases"][-1]["share"] == pytest.approx(0.5 / content["total_s"], abs=1e-5)


def test_the_report_has_versions_marks_waits_and_the_page_cache():
    content = report_of(resident_share=0.25).to_dict()
    assert content["schema_version"] == SCHEMA_VERSION == 2
    assert content["versions"] == {"torch": "2.13.0"}
    assert content["marks"] == {"listening": 0.05}
    assert content["page_cache"] == {"total_bytes": 1000, "resident_bytes": 250}
    waits = {span["name"]: span["waits_for"] for span in content["spans"]}
    assert waits["wait_for_engine"] == "engine"
    assert waits["import_server"] is None


def test_the_report_of_a_failed_start_has_the_reason():
    timeline = PhaseTimeline.from_process_start()
    facts = StartFacts(model="m", start_method="spawn", outcome="failed", error="no such folder")
    written = json.loads(build_report(timeline, facts).to_json())
    assert (written["outcome"], written["error"]) == ("failed", "no such folder")


def test_a_running_start_is_reported_up_to_now():
    timeline = PhaseTimeline.from_process_start()
    with timeline.span("running_span"):
        time.sleep(0.02)
        report = build_report(timeline, StartFacts(model="m", start_method="spawn", outcome="starting"))
        running = {phase.name: phase.took_s for phase in report.phases}
    assert running["running_span"] > 0.01
    assert 0 < report.total_s <= timeline.elapsed_s
