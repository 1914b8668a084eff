"""The report has all data of the timeline. It can be read back unchanged, or written as a trace."""

import json
import time

import pytest

from startup.reports.timeline.report import SCHEMA_VERSION, ReportError, StartFacts, build_report, read_report
from startup.reports.timeline.timeline import PhaseTimeline
from tests.startup.reports.timeline.start_reports import report_of


def test_phases_partition_the_total():
    content = report_of().to_dict()
    assert sum(phase["took_s"] for phase in content["phases"]) == pytest.approx(content["total_s"])
    assert sum(phase["share"] for phase in content["phases"]) == pytest.approx(1)
    assert content["explained_share"] == 1
    assert [phase["name"] for phase in content["phases"]] == ["boot", "import_torch", "load_weights"]


def test_the_report_has_versions_marks_waits_and_the_page_cache():
    content = report_of(resident_share=0.25).to_dict()
    assert content["schema_version"] == SCHEMA_VERSION == 1
    assert content["versions"] == {"torch": "2.13.0"}
    assert content["marks"] == {"listening": 0.05}
    assert content["page_cache"] == {"total_bytes": 1000, "resident_bytes": 250}
    waits = {span["name"]: span["waits_for"] for span in content["spans"]}
    assert waits["wait_for_engine"] == "engine"
    assert waits["import_server"] is None


@pytest.mark.parametrize("resident_share", [None, 0.25])
def test_a_report_read_back_is_the_same(resident_share):
    report = report_of(resident_share=resident_share)
    again = read_report(json.dumps(report.to_dict() | {"of a later version": 1}))
    assert again.to_dict() == report.to_dict()
    assert again.table() == report.table()


def test_the_report_of_a_failed_start_has_the_reason():
    timeline = PhaseTimeline.from_process_start()
    facts = StartFacts(model="m", start_method="spawn", outcome="failed", error="no such folder")
    again = read_report(build_report(timeline, facts).to_json())
    assert (again.outcome, again.error) == ("failed", "no such folder")


def test_a_running_start_is_reported_up_to_now():
    timeline = PhaseTimeline.from_process_start()
    with timeline.span("running_span"):
        time.sleep(0.02)
        report = build_report(timeline, StartFacts(model="m", start_method="spawn", outcome="starting"))
        running = {phase.name: phase.took_s for phase in report.phases}
    assert running["running_span"] > 0.01
    assert 0 < report.total_s <= timeline.elapsed_s
    assert sum(phase.took_s for phase in report.phases) == pytest.approx(report.total_s)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "other"}, "its schema is other 1"),
        ({"schema_version": 2}, "startup-report 2, this program reads vllm-cli/startup-report 1"),
        ({"spans": None}, r"Expected `array`, got `null` - at `\$.spans`"),
        ({"total_s": float("nan")}, "malformed"),
        ({"total_s": 10**400}, "out of range"),
        ({"outcome": "lost"}, r"Invalid enum value 'lost' - at `\$.outcome`"),
        ({"critical_path": [{"process": "a", "name": "b", "begin_s": 2, "end_s": 1}]}, "cannot last from 2 s to 1 s"),
    ],
    ids=str,
)
def test_a_file_that_is_no_report_is_rejected_with_one_line(change, message):
    with pytest.raises(ReportError, match=message) as caught:
        read_report(json.dumps(report_of().to_dict() | change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000], ids=["empty", "list", "cut", "null", "deep"])
def test_text_that_is_no_report_is_rejected(text):
    with pytest.raises(ReportError):
        read_report(text)
