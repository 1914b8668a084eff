"""A real start of the real model: the next start estimates its time. Report and trace: e2e/test_start.py."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from startup.timeline.report import read_report
from tests.http_answer import ask
from tests.ports import free_port

pytestmark = pytest.mark.thorough


class RealStart:
    """One start of `vllm-cli serve`: the progress that it reported, its log and its report."""

    def __init__(self, model: Path, folder: Path) -> None:
        port = free_port()
        report = folder / "report.json"
        words = ["serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--startup-report", str(report)]
        environment = os.environ | {"VLLM_CACHE_ROOT": str(folder / "cache")}
        self.answers: list[dict[str, Any]] = []
        begin_s = time.monotonic()
        with subprocess.Popen(
            [sys.executable, "-m", "vllm_cli", *words], env=environment, stderr=subprocess.PIPE, text=True
        ) as server:
            while (answer := ask(f"http://127.0.0.1:{port}/health")).status != 200:
                assert time.monotonic() - begin_s < 200
                assert server.poll() is None
                if answer.status == 503:
                    self.answers.append(answer.json)
                time.sleep(0.02)
            self.startupz = ask(f"http://127.0.0.1:{port}/startupz").json
            server.send_signal(signal.SIGTERM)
            self.log = server.communicate(timeout=60)[1]
        self.report = read_report(report.read_text())


@pytest.fixture(scope="module")
def starts(model_path, tmp_path_factory) -> list[RealStart]:
    """Two starts with one cache folder."""
    folder = tmp_path_factory.mktemp("starts")
    return [RealStart(model_path, folder) for _ in range(2)]


def test_startupz_equals_the_report_file(starts):
    for start in starts:
        assert read_report(json.dumps(start.startupz)).phases == start.report.phases


def test_the_first_start_reports_its_phase_and_the_second_also_its_progress(starts):
    first, second = starts
    assert {answer["phase"] for answer in first.answers} & {span.name for span in first.report.spans}
    assert {answer["progress"] for answer in first.answers} == {None}
    known = [answer for answer in second.answers if answer["progress"] is not None]
    shares = [answer["progress"] for answer in known]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] < 1
    assert all(answer["eta_s"] >= 0 for answer in known)


def test_the_table_is_in_the_log(starts):
    for start in starts:
        assert all(line in start.log for line in start.report.table().splitlines() if "#" in line)
