"""A real start of the real model: its report explains it, its trace can be read, and the next start knows how long."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from startup.timeline.reader import read_report
from tests.http_answer import ask
from tests.ports import free_port

pytestmark = [pytest.mark.thorough, pytest.mark.alone]
"""What is explained is a share of the time, and who is kept waiting between two spans has time that none explains."""


class RealStart:
    """One start of `vllm-cli serve`: what it said meanwhile, and the files that it wrote."""

    def __init__(self, model: Path, folder: Path) -> None:
        port = free_port()
        report, trace = folder / "report.json", folder / "trace.json"
        words = ["serve", str(model), "--host", "127.0.0.1", "--port", str(port)]
        words += ["--startup-report", str(report), "--startup-trace", str(trace)]
        environment = os.environ | {"VLLM_CACHE_ROOT": str(folder / "cache")}
        self.looks: list[dict[str, Any]] = []
        begin_s = time.monotonic()
        with subprocess.Popen(
            [sys.executable, "-m", "vllm_cli", *words], env=environment, stderr=subprocess.PIPE, text=True
        ) as server:
            while (answer := ask(f"http://127.0.0.1:{port}/health")).status != 200:
                assert time.monotonic() - begin_s < 200
                assert server.poll() is None
                if answer.status == 503:
                    self.looks.append(answer.json)
                time.sleep(0.02)
            self.ready_after_s = time.monotonic() - begin_s
            self.startupz = ask(f"http://127.0.0.1:{port}/startupz").json
            server.send_signal(signal.SIGTERM)
            self.log = server.communicate(timeout=60)[1]
        self.report = read_report(report.read_text())
        self.trace = json.loads(trace.read_text())


@pytest.fixture(scope="module")
def starts(model_path, tmp_path_factory) -> list[RealStart]:
    """Two starts with one cache folder."""
    folder = tmp_path_factory.mktemp("starts")
    return [RealStart(model_path, folder) for _ in range(2)]


def test_99_percent_of_a_real_start_are_explained(starts) -> None:
    for start in starts:
        assert start.report.explained_share >= 0.99, start.report.table()
        assert sum(phase.took_s for phase in start.report.phases) == pytest.approx(start.report.total_s, abs=1e-3)


def test_the_report_counts_from_the_process_and_not_from_its_first_line(starts) -> None:
    for start in starts:
        assert start.report.phases[0].name == "interpreter_and_cli"
        assert start.report.total_s <= start.ready_after_s + 0.1


def test_spans_of_every_process_are_in_the_report_and_in_the_trace(starts) -> None:
    for start in starts:
        assert {span.process for span in start.report.spans} >= {"api", "forkserver", "engine"}
        names = {event["args"]["name"] for event in start.trace["traceEvents"] if event["name"] == "process_name"}
        assert names >= {"critical path", "api", "forkserver", "engine"}


def test_startupz_tells_what_the_report_file_does(starts) -> None:
    for start in starts:
        assert read_report(json.dumps(start.startupz)).phases == start.report.phases


def test_the_first_start_knows_its_phase_and_the_second_also_how_long_it_takes(starts) -> None:
    first, second = starts
    assert {look["phase"] for look in first.looks} & {span.name for span in first.report.spans}
    assert {look["progress"] for look in first.looks} == {None}
    known = [look for look in second.looks if look["progress"] is not None]
    shares = [look["progress"] for look in known]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] < 1
    assert all(look["eta_s"] >= 0 for look in known)


def test_the_table_is_in_the_log(starts) -> None:
    for start in starts:
        assert all(line in start.log for line in start.report.table().splitlines() if "#" in line)
