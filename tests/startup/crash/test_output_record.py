"""The record has all that processes write, and how they end."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from startup.causes.first_cause import find_cause
from startup.crash import output_record
from startup.crash.output_record import OutputRecord, ProcessEnds
from tests.waiting import is_gone, wait_until

_TRACEBACK = "Traceback (most recent call last):\n  File 'x.py', line 1, in load_model\nValueError: no weights\n"
_FATAL = f"(EngineCore pid=1) ERROR EngineCore failed to start.\n{_TRACEBACK}"

_PID = 77
_STACK = """\
Phase: loading_cpu
Fatal Python error: Segmentation fault

Current thread 0x00007f0000000000 (most recent call first):
  File "/vllm/loader.py", line 9 in get_model
  File "/vllm/worker.py", line 5 in worker_main

Thread 0x00007f0000000001 (most recent call first):
  File "/lib/threading.py", line 1 in wait
"""


def test_everything_is_recorded_before_readiness(tmp_path):
    record = OutputRecord(tmp_path)
    record.add_output("loading\n")
    assert record.file.read_text() == "loading\n"
    assert record.file.stat().st_mode & 0o777 == 0o600


def test_only_errors_are_recorded_while_the_server_runs(tmp_path):
    record = OutputRecord(tmp_path)
    record.keeps_only_errors = True
    for text in ("GET /health 200\n", "ERROR: out of memory\n"):
        record.add_output(text)
    assert record.file.read_text() == "ERROR: out of memory\n"


def test_an_exception_that_was_logged_is_not_shown_again(tmp_path, capsys):
    record = OutputRecord(tmp_path)
    record.add_output(_FATAL)
    record.add_exception(ValueError("no weights"), "EngineCore")
    assert (record.file.read_text(), capsys.readouterr().err) == (_FATAL, "")
    record.add_exception(ValueError("another"), "EngineCore")
    shown = capsys.readouterr().err
    assert "Process EngineCore:" in shown
    assert shown.endswith(") ValueError: another\n")


def test_a_record_that_is_too_long_begins_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(output_record, "_MOST_BYTES", 10)
    record = OutputRecord(tmp_path)
    for number in range(5):
        record.append(f"line {number}\n")
    assert record.file.read_text() == "line 4\n"


def test_a_full_disk_or_a_missing_folder_does_not_matter(tmp_path):
    record = OutputRecord(tmp_path / "missing")
    record.add_output("loading\n")
    assert record.read_state(1).name == ""


def test_handlers_that_hold_the_stream_write_to_the_record(tmp_path, monkeypatch):
    with (tmp_path / "shown").open("w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        handler = logging.StreamHandler(stream)
        record = OutputRecord(tmp_path)
        record.begin_process("test")
        record.begin_process("test")  # as in a fork: nothing is written twice
        handler.emit(logging.LogRecord("x", logging.INFO, "", 0, "a line", (), None))
    assert record.file.read_text() == (tmp_path / "shown").read_text() == "a line\n"


def _describe(folder: Path, code: int, state: str = "", *, parent_pid: int = 0) -> str:
    (folder / f"{_PID}.state").write_text(f"VllmWorker-0\n{parent_pid}\n{state}")
    record = OutputRecord(folder)
    ProcessEnds(record).add(_PID, code)
    return record.file.read_text()


@pytest.mark.parametrize(
    ("code", "name", "phase"),
    [
        (-signal.SIGSEGV, "native-crash", "while it loaded the model"),
        (-signal.SIGILL, "illegal-instruction", "while it loaded the model"),
        (-signal.SIGKILL, "killed-from-outside", "while it loaded the model"),
        (3, "process-vanished", "while it loaded the model"),
    ],
)
def test_the_cause_is_found_in_the_lines(code, name, phase, tmp_path):
    cause = find_cause(_describe(tmp_path, code, _STACK).splitlines())
    assert cause is not None
    assert cause.known is not None
    assert (cause.process, cause.known.name, cause.phase) == (f"VllmWorker-0 pid={_PID}", name, phase)


def test_the_stack_of_the_thread_with_the_signal_is_a_traceback(tmp_path):
    text = _describe(tmp_path, -signal.SIGSEGV, _STACK)
    assert text.index("in worker_main") < text.index("in get_model")
    assert "threading" not in text


@pytest.mark.parametrize("code", [0, -signal.SIGTERM])
def test_a_process_that_was_asked_to_end_has_not_failed(code, tmp_path):
    assert find_cause(_describe(tmp_path, code).splitlines()) is None


def test_a_process_that_ended_with_its_parent_is_not_the_cause(tmp_path):
    child = subprocess.Popen(["true"])  # not reaped, so that its number is not used again
    wait_until(lambda: is_gone(child.pid))
    assert find_cause(_describe(tmp_path, -signal.SIGKILL, parent_pid=child.pid).splitlines()) is None
    assert find_cause(_describe(tmp_path, -signal.SIGKILL, parent_pid=os.getpid()).splitlines()) is not None
    child.wait()


def test_a_process_without_a_record_is_not_one_of_the_server(tmp_path):
    record = OutputRecord(tmp_path)
    ProcessEnds(record).add(os.getpid(), 1)
    assert record.file.read_text() == ""
