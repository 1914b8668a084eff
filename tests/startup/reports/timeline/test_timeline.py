"""The timeline begins with the kernel's start of the process and has spans of several processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from base.machine.processes import process_start_ns
from startup.reports.timeline.report import StartFacts, build_report, read_report
from startup.reports.timeline.spans import PhaseSpan
from startup.reports.timeline.timeline import PhaseTimeline
from tests.support.cli import python_output
from tests.support.http_client import ask
from tests.support.ports import free_port

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
    try:
        with timeline.span("fails"):
            raise ValueError
    except ValueError:
        pass
    assert [s.name for s in timeline.spans] == ["fails"]


def test_table_shows_share_and_bar_of_each_phase_of_the_critical_path():
    timeline = PhaseTimeline(0)
    timeline.add("api", [("listen", 0, SECOND), ("idle_import", SECOND, 2 * SECOND)])
    timeline.spans.append(PhaseSpan("api", "wait", 2 * SECOND, 4 * SECOND, waits_for="engine"))
    timeline.add("engine", [("load", SECOND, 4 * SECOND)])
    timeline.end_ns = 4 * SECOND
    report = build_report(timeline, StartFacts(model="m", start_method="spawn"))
    _, listen, load, meanwhile, hidden = report.table().splitlines()
    assert listen.split() == ["0.000", "1.000", "25.0%", "api", "listen", "#" * 6]
    assert load.split() == ["1.000", "3.000", "75.0%", "engine", "load", "#" * 18]
    assert meanwhile == "meanwhile, without delaying the start:"
    assert hidden.split() == ["1.000", "1.000", "api", "idle_import"]


def test_a_name_may_contain_its_process():
    timeline = PhaseTimeline(0)
    timeline.add("engine", [("forkserver:preload_imports", 0, 1), ("load_weights", 1, 2)])
    assert [span.key for span in timeline.spans] == ["forkserver:preload_imports", "engine:load_weights"]


def test_running_is_the_innermost_open_span():
    timeline = PhaseTimeline(time.monotonic_ns())
    assert timeline.running is None
    with timeline.span("outer"), timeline.span("inner"):
        assert timeline.running is not None
        assert timeline.running.name == "inner"
    assert timeline.running is None


def _start(model: Path, folder: Path) -> tuple[list[dict[str, Any]], set[str]]:
    """Runs a start of `vllm-cli serve`. Returns its answers until it is ready, and the names of its spans."""
    port = free_port()
    report = folder / "report.json"
    words = ["serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--startup-report", str(report)]
    environment = os.environ | {"VLLM_CACHE_ROOT": str(folder / "cache")}
    answers: list[dict[str, Any]] = []
    begin_s = time.monotonic()
    with subprocess.Popen([sys.executable, "-m", "vllm_cli", *words], env=environment) as server:
        while (answer := ask(f"http://127.0.0.1:{port}/health")).status != 200:
            assert time.monotonic() - begin_s < 200
            assert server.poll() is None
            if answer.status == 503:
                answers.append(answer.json)
            time.sleep(0.02)
        server.send_signal(signal.SIGTERM)
    return answers, {span.name for span in read_report(report.read_text()).spans}


@pytest.mark.thorough
def test_the_first_start_reports_its_phase_and_the_second_also_its_progress(model_path, tmp_path):
    first, names = _start(model_path, tmp_path)
    assert {answer["phase"] for answer in first} & names
    assert {answer["progress"] for answer in first} == {None}
    second, _ = _start(model_path, tmp_path)
    known = [answer for answer in second if answer["progress"] is not None]
    shares = [answer["progress"] for answer in known]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] < 1
    assert all(answer["eta_s"] >= 0 for answer in known)
