"""Reports on hung processes. They are real processes with a record: stopped, busy and waiting ones."""

import asyncio
import multiprocessing
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pytest

from startup.reports.crash import engine_processes
from startup.reports.crash.crash_report import find_crash
from startup.reports.crash.engine_processes import RecordedProcesses
from startup.reports.crash.output_record import OutputRecord
from tests.support.waiting import wait_until

pytestmark = pytest.mark.thorough

_KINDS = ("EngineCore", "VllmWorker")


def dequeue() -> None:
    """Waits, like an idle worker of vLLM."""
    time.sleep(600)


def dead_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def endless_loop() -> None:
    re.match(r"(a*)*b", "a" * 60)


def _run(folder: Path, name: str, work: Callable[[], Any], begun: Any) -> None:
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    OutputRecord(folder).begin_process(name)
    begun.set()
    work()


@contextmanager
def _running(folder: Path, **works: Callable[[], Any]) -> Iterator[list[psutil.Process]]:
    context = multiprocessing.get_context("spawn")
    processes = []
    for name, work in works.items():
        begun = context.Event()
        process = context.Process(target=_run, args=(folder, name, work, begun))
        process.start()
        processes.append(process)
        assert begun.wait(120)
    try:
        with patch.object(engine_processes, "_WRITE_S", 60.0):
            _wait_until_all(folder, works)
            yield [psutil.Process(process.pid) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _wait_until_all(folder: Path, works: Mapping[str, Callable[[], Any]]) -> None:
    """Waits until the stacks of all processes show that they run these functions."""

    def work() -> bool:
        told = asyncio.run(RecordedProcesses(OutputRecord(folder), tuple(works)).read_stacks())
        return all(told.count(f", in {each.__name__}") == list(works.values()).count(each) for each in works.values())

    wait_until(work)


def _suspend(process: psutil.Process) -> None:
    process.suspend()
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED)


@pytest.fixture
def record(tmp_path: Path) -> OutputRecord:
    return OutputRecord(tmp_path)


def test_stopped_processes_are_named_and_others_show_their_stacks(record):
    works = {"EngineCore": dequeue, "VllmWorker_1": dead_lock, "ApiServer_0": dequeue}
    with _running(record.folder, **works) as (engine, worker, other):
        processes = RecordedProcesses(record, _KINDS)
        assert processes.stopped() == []
        _suspend(engine)
        other.suspend()
        assert processes.stopped() == [f"EngineCore (pid {engine.pid})"]
        told = asyncio.run(processes.read_stacks()).splitlines()
    assert told[0] == f"EngineCore (pid {engine.pid}) is stopped by a signal:"
    assert told[1] == f"VllmWorker_1 (pid {worker.pid}):"
    assert told[-1].endswith(", in dead_lock")
    assert "sleep" not in "".join(told)


@pytest.mark.parametrize(
    ("works", "stopped", "blamed", "place"),
    [
        ({"EngineCore": dequeue, "VllmWorker_0": dequeue}, 1, "VllmWorker_0", "dequeue"),
        (
            {"EngineCore": dequeue, "VllmWorker_0": dequeue, "VllmWorker_1": dead_lock},
            None,
            "VllmWorker_1",
            "dead_lock",
        ),
    ],
    ids=["stopped worker", "dead lock"],
)
def test_the_digest_names_the_process_that_hangs_and_its_place(record, works, stopped, blamed, place):
    with _running(record.folder, **works) as running:
        if stopped is not None:
            _suspend(running[stopped])
        pid = running[list(works).index(blamed)].pid
        asyncio.run(RecordedProcesses(record, _KINDS).end("it was silent for 6 s (--engine-watchdog-timeout): since 1"))
        wait_until(lambda: all(process.status() == psutil.STATUS_ZOMBIE for process in running))
    cause = find_crash(record)
    assert cause is not None
    first, second, *_ = cause.lines()
    assert first.startswith(f"{blamed} (pid {pid}) failed")
    assert "the engine hung: EngineHangError: it was silent for 6 s" in second
    assert re.search(rf"; {blamed} \(pid {pid}\) in {place}\(\) of \w+\.py:\d+$", second), second
    kept = record.file.read_text()
    assert all(f"({name} pid=" in kept for name in works)
    assert kept.count("in _bootstrap_inner") >= len(works)  # of the other threads


def test_processor_time_of_those_that_compute_or_of_their_compilers_counts(record):
    works = {"EngineCore": endless_loop, "VllmWorker_0": with_busy_child}
    with _running(record.folder, **works) as (engine, worker), ExitStack() as stack:
        processes = RecordedProcesses(record, _KINDS)
        (child,) = worker.children()
        stack.callback(child.kill)
        wait_until(lambda: min(sum(process.cpu_times()[:2]) for process in (engine, child)) > 1)
        with_own, without = (processes.computed_s(is_on_processor=is_on) for is_on in (True, False))
        assert 1 <= without <= with_own
        assert with_own <= sum(child.cpu_times()[:2]) + sum(worker.cpu_times()[:4])  # without the engine's


def with_busy_child() -> None:
    subprocess.Popen([sys.executable, "-c", "while True: pass"])
    dequeue()


def test_a_process_without_a_handler_is_not_sent_the_signal(record):
    program = f"import time; print(flush=True); time.sleep(600)  # {record.folder}"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        (record.folder / f"{process.pid}.state").write_text("EngineCore\n0\n")
        told = asyncio.run(RecordedProcesses(record, _KINDS).read_stacks())
        assert told == f"EngineCore (pid {process.pid}):"
        assert process.poll() is None
        process.kill()
