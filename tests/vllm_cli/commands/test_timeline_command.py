"""`vllm-cli timeline` shows reports of starts."""

import json
from pathlib import Path

import pytest

from startup.reports.timeline.report import read_report
from tests.startup.reports.timeline.start_reports import report_of
from tests.support.cli import run_cli


@pytest.fixture
def before(tmp_path) -> Path:
    path = tmp_path / "before.json"
    path.write_text(report_of(resident_share=0.9).to_json())
    return path


def test_one_report_is_shown_as_a_table(before, invoke):
    done = invoke("timeline", str(before))
    assert done.returncode == 0, done.stderr
    head, *table = done.stdout.splitlines()
    assert "ready after 1.70 s, 100.0% explained" in head
    assert "90% of the weights in memory" in head
    assert "\n".join(table) == report_of().table()


def test_a_report_on_standard_input_is_shown_as_json(before):
    done = run_cli("timeline", "-", "--json", input=before.read_text())
    assert read_report(done.stdout).to_dict() == json.loads(before.read_text())


def test_an_invalid_report_is_one_line_and_exit_code_2(invoke, tmp_path):
    """tests/startup/reports/timeline/test_report.py has all faults of a report."""
    path = tmp_path / "report.json"
    for content, message in ((b"", "is not a start-up report"), (b"\xff\xfe", "it is not text")):
        path.write_bytes(content)
        done = invoke("timeline", str(path))
        assert done.returncode == 2
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    missing = invoke("timeline", "no-such-file.json")
    assert (missing.returncode, "no-such-file.json" in missing.stderr) == (2, True)


def test_a_start_of_zero_duration_can_be_shown(invoke, tmp_path):
    content = report_of().to_dict() | {"spans": [], "critical_path": [], "total_s": 0, "marks": {}}
    report = tmp_path / "report.json"
    report.write_text(json.dumps(content))
    assert invoke("timeline", str(report)).returncode == 0
