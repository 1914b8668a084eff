"""The record has all that processes write."""

import logging
import sys
from pathlib import Path

import pytest

from startup.crash import output_record
from startup.crash.output_record import OutputRecord

_TRACEBACK = "Traceback (most recent call last):\n  File 'x.py', line 1, in load_model\nValueError: no weights\n"
_FATAL = f"(EngineCore pid=1) ERROR EngineCore failed to start.\n{_TRACEBACK}"


def test_everything_is_recorded_before_readiness(tmp_path: Path) -> None:
    record = OutputRecord(tmp_path)
    record.add_output("loading\n")
    assert record.file.read_text() == "loading\n"
    assert record.file.stat().st_mode & 0o777 == 0o600


def test_only_errors_are_recorded_while_the_server_runs(tmp_path: Path) -> None:
    record = OutputRecord(tmp_path)
    record.keeps_only_errors = True
    for text in ("GET /health 200\n", "ERROR: out of memory\n"):
        record.add_output(text)
    assert record.file.read_text() == "ERROR: out of memory\n"


def test_an_exception_that_was_logged_is_not_shown_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = OutputRecord(tmp_path)
    record.add_output(_FATAL)
    record.add_exception(ValueError("no weights"), "EngineCore")
    assert (record.file.read_text(), capsys.readouterr().err) == (_FATAL, "")
    record.add_exception(ValueError("another"), "EngineCore")
    shown = capsys.readouterr().err
    assert "Process EngineCore:" in shown
    assert shown.endswith(") ValueError: another\n")


def test_a_record_that_is_too_long_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_record, "_MOST_BYTES", 10)
    record = OutputRecord(tmp_path)
    for number in range(5):
        record.append(f"line {number}\n")
    assert record.file.read_text() == "line 4\n"


def test_a_full_disk_or_a_missing_folder_does_not_matter(tmp_path: Path) -> None:
    record = OutputRecord(tmp_path / "missing")
    record.add_output("loading\n")
    assert record.read_state(1).name == ""


def test_handlers_that_hold_the_stream_write_to_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "shown").open("w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        handler = logging.StreamHandler(stream)
        record = OutputRecord(tmp_path)
        record.begin_process("test")
        record.begin_process("test")  # as in a fork: nothing is written twice
        handler.emit(logging.LogRecord("x", logging.INFO, "", 0, "a line", (), None))
    assert record.file.read_text() == (tmp_path / "shown").read_text() == "a line\n"
