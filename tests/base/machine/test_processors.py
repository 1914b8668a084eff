"""Processor time of this process's threads, and of the processors that they may use."""

import os
import threading
from pathlib import Path
from time import thread_time

import pytest

from base.machine.processors import ProcessorTime, ThreadTime, read_processor_time

_TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A process with three threads that may use the processors 1 and 2 of three."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2})
    for thread_id, content in (("7", "5000 300 2\n"), ("8", "100 40 2\n"), ("9", "0 0 0\n")):
        task = tmp_path / "self" / "task" / thread_id
        task.mkdir(parents=True)
        (task / "schedstat").write_text(content)
    columns = "user nice system idle iowait irq softirq steal guest guest_nice"
    rows = ["9 9 9 9 9 9 9 9 9 9", "1 2 3 40 5 6 7 8 9 9", "10 0 0 50 0 0 0 2 9 9"]
    ticks = [" ".join(str(int(n) * _TICKS) for n in row.split()) for row in rows]
    lines = [f"cpu  {columns}", *(f"cpu{number} {row}" for number, row in enumerate(ticks)), "intr 1 2 3"]
    (tmp_path / "stat").write_text("\n".join(lines))
    return tmp_path


def test_reads_threads_and_usable_processors(proc):
    threads = {"7": ThreadTime(5000, 300), "8": ThreadTime(100, 40)}
    assert read_processor_time(proc) == ProcessorTime(threads, 2, idle_s=95, busy_s=29, stolen_s=10)


def test_a_kernel_without_these_files_reports_nothing(proc):
    (proc / "stat").unlink()
    (proc / "self" / "task" / "7" / "schedstat").unlink()
    (proc / "self" / "task" / "8" / "schedstat").write_text("")
    nothing = read_processor_time(proc)
    assert nothing == ProcessorTime({}, 0, 0, 0, 0)
    assert nothing.since(nothing).lost_share == nothing.since(nothing).num_left == 0


def test_use_counts_threads_of_both_moments():
    before = ProcessorTime({"7": ThreadTime(10**9, 0), "8": ThreadTime(10**9, 0)}, 2, idle_s=1, busy_s=5, stolen_s=1)
    after = ProcessorTime({"7": ThreadTime(3 * 10**9, 10**9), "9": ThreadTime(10**9, 0)}, 2, 2, busy_s=8, stolen_s=2)
    use = after.since(before)
    assert use.lost_share == pytest.approx(1 - 2 / 3 * 3 / 4)
    assert use.num_left == pytest.approx(2 * 3 / 5), "others used a second, the hypervisor took another, of five"


def test_this_process_uses_processor_time():
    before = read_processor_time()
    end_s = thread_time() + 0.05
    while thread_time() < end_s:
        pass
    use = read_processor_time().since(before)
    assert str(threading.get_native_id()) in before.threads
    assert 0 <= use.lost_share < 1
