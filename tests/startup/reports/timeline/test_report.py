"""The report has all data of the timeline."""

import json
import time

import pytest

from startup.reports.timeline.report import SCHEMA_VERSION, StartFacts, build_report
from startup.reports.timeline.timeline import PhaseTimeline
from tests.startup.reports.timeline.start_reports import report_of


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
