"""The record has all that processes write; of their tracebacks, the first failure's is shown."""

import logging
import sys
from pathlib import Path

import pytest

from startup.crash import output_record
from startup.crash.output_record import OutputRecord

_TRACEBACK = "Traceback (most recent call last):\n  File 'x.py', line 1, in load_model\nValueError: no weights\n"
_FATAL = f"(EngineCore pid=1) ERROR EngineCore failed to start.\n{_TRACEBACK}"
_DEAD = f"(APIServer pid=2) ERROR AsyncLLM output_handler failed.\n{_TRACEBACK}EngineDeadError: see above\n"
_OF_REQUEST = f"ERROR: Exception in ASGI application\n{_TRACEBACK}"


def test_everything_is_recorded_and_shown_before_readiness(tmp_path: Path) -> None:
    record = OutputRecord(tmp_path)
    assert record.take("loading\n", is_terminal=False) == "loading\n"
    assert record.file.read_text() == "loading\n"
    assert record.file.stat().st_mode & 0o777 == 0o600


def test_only_errors_are_recorded_while_the_server_runs(tmp_path: Path) -> None:
    record = OutputRecord(tmp_path)
    record.keeps_only_errors = True
    for text in ("GET /health 200\n", "ERROR: out of memory\n"):
        assert record.take(text, is_terminal=False) == text
    assert record.file.read_text() == "ERROR: out of memory\n"


def test_a_log_shows_the_traceback_of_the_first_failure_only(tmp_path: Path) -> None:
    engine, api = OutputRecord(tmp_path), OutputRecord(tmp_path)
    assert api.take(_DEAD, is_terminal=False) == "(APIServer pid=2) ERROR AsyncLLM output_handler failed.\n"
    assert engine.take(_FATAL, is_terminal=False) == _FATAL
    assert api.take(_FATAL, is_terminal=False) == "(EngineCore pid=1) ERROR EngineCore failed to start.\n"
    assert engine.file.read_text() == _DEAD + _FATAL + _FATAL


def test_a_terminal_shows_no_traceback_of_a_failed_process(tmp_path: Path) -> None:
    shown = OutputRecord(tmp_path).take(_FATAL, is_terminal=True)
    assert shown == "(EngineCore pid=1) ERROR EngineCore failed to start.\n"


@pytest.mark.parametrize(
    "text", [_OF_REQUEST, '{"message": "EngineCore failed to start.", "exception": "Traceback"}\n']
)
def test_errors_of_requests_and_lines_of_json_are_always_shown(text: str, tmp_path: Path) -> None:
    record = OutputRecord(tmp_path)
    assert [record.take(text, is_terminal=is_terminal) for is_terminal in (True, False)] == [text, text]


def test_an_exception_that_was_logged_is_not_recorded_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = OutputRecord(tmp_path)
    record.take(_FATAL, is_terminal=False)
    record.add_exception(ValueError("no weights"), "EngineCore")
    assert record.file.read_text() == _FATAL
    record.add_exception(ValueError("another"), "EngineCore")
    assert record.file.read_text().splitlines()[-1].endswith(") ValueError: another")
    assert capsys.readouterr().err == ""


def test_the_first_exception_is_shown_in_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = OutputRecord(tmp_path)
    record.add_exception(ValueError("no weights"), "EngineCore")
    shown = capsys.readouterr().err
    assert "Process EngineCore:" in shown
    assert "ValueError: no weights" in shown


def test_a_record_that_is_too_long_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_record, "_MOST_BYTES", 10)
    record = OutputRecord(tmp_path)
    for number in range(5):
        record.append(f"line {number}\n")
    assert record.file.read_text() == "line 4\n"


def test_a_full_disk_or_a_missing_folder_does_not_matter(tmp_path: Path) -> None:
    record = OutputRecord(tmp_path / "missing")
    assert record.take("loading\n", is_terminal=False) == "loading\n"
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
