"""Records cannot forge a line or control a terminal, also as JSON. `--log-config-file` is applied."""

import io
import json
import logging
import os
import sys
from datetime import datetime
from typing import Any

import pytest

from base.errors import ConfigError
from startup.logs.formatters import TextFormatter
from startup.logs.json_lines import JsonFormatter
from startup.logs.options import LogOptions
from startup.logs.setup import SteadyHandler, configure_logging, translate
from tests.support.cli import run_python

_FORGED = "INFO 11-20 18:00:00 (api) server.run.api_process: all is well"
_HOSTILE = f"x\r\n{_FORGED}\x1b[2J\x9b31m\x07\x7f\u2028\u202e\x00\n\n{_FORGED}"


def _record(message: str, *args: object, is_exception: bool = False) -> logging.LogRecord:
    exc_info = None
    if is_exception:
        try:
            raise ValueError(_HOSTILE)
        except ValueError:
            exc_info = sys.exc_info()
    return logging.LogRecord("server.x", logging.ERROR, __file__, 1, message, args, exc_info)


@pytest.mark.parametrize("formatter", [TextFormatter("api"), JsonFormatter("api", lambda: "serving")])
@pytest.mark.parametrize("is_exception", [False, True], ids=["message", "traceback"])
def test_a_record_has_no_control_characters_and_its_further_lines_are_indented(formatter, is_exception):
    text = formatter.format(_record("%s", _HOSTILE, is_exception=is_exception))
    assert [c for c in text if not c.isprintable() and c != "\n"] == []
    assert "x1b[2J" in text or "u001b[2J" in text
    assert [line for line in text.splitlines()[1:] if line and not line.startswith("  ")] == []


def test_printable_characters_are_unchanged():
    text = TextFormatter("api").format(_record("größe\t日本 %s", "🙂 \\x1b"))
    assert text.endswith("(api) server.x: größe\t日本 🙂 \\x1b")


def test_the_date_in_utc_has_year_and_zone():
    record = _record("hello")
    record.created = 1_800_000_000.5
    assert TextFormatter("api", is_utc=True).format(record) == "ERROR 2027-01-15T08:00:00Z (api) server.x: hello"


class _Disk(io.StringIO):
    """A file that raises an error on each write while the disk is full."""

    is_full = False

    def write(self, text: str) -> int:
        if self.is_full:
            raise OSError(28, "No space left on device")
        return super().write(text)


@pytest.fixture
def disk() -> _Disk:
    return _Disk()


@pytest.fixture
def handler(disk: _Disk) -> SteadyHandler:
    return SteadyHandler(disk)


def _log(handler: SteadyHandler, message: str, *args: object) -> None:
    handler.handle(logging.LogRecord("steady", logging.INFO, __file__, 1, message, args, None))


def test_lost_lines_are_counted_until_the_stream_can_be_written(disk, handler, capsys):
    _log(handler, "before")
    disk.is_full = True
    for number in range(3):
        _log(handler, "lost %d", number)
    disk.is_full = False
    _log(handler, "after")
    _log(handler, "and later")
    assert disk.getvalue().splitlines() == [
        "before",
        "3 lines of this log were lost: standard error could not be written (No space left on device)",
        "after",
        "and later",
    ]
    assert capsys.readouterr().err == ""


def test_an_error_in_the_program_is_still_shown(disk, handler, capsys):
    _log(handler, "%d", "no number")
    assert "TypeError" in capsys.readouterr().err
    assert disk.getvalue() == ""


VLLM_FILE: dict[str, Any] = {
    "version": 1,
    "formatters": {"short": {"class": "vllm.logging_utils.NewLineFormatter", "format": "%(name)s|%(message)s"}},
    "handlers": {"out": {"class": "logging.StreamHandler", "formatter": "short", "stream": "ext://sys.stdout"}},
    "loggers": {"vllm": {"handlers": ["out"], "level": "DEBUG", "propagate": False}},
}


def test_settings_of_vllms_logger_apply_to_ours_unless_named():
    loggers = translate(VLLM_FILE | {"loggers": VLLM_FILE["loggers"] | {"server": {"level": "ERROR"}}})["loggers"]
    assert loggers["startup"] == loggers["vllm"]
    assert loggers["server"] == {"level": "ERROR"}


def test_a_file_written_for_vllm_is_applied():
    code = f"""
import logging
from startup.logs.options import LogOptions
from startup.logs.setup import configure_logging
configure_logging(LogOptions(level="ERROR", format="json", config={VLLM_FILE!r}), role="api")
logging.getLogger("server.run.api_process").debug("hello")
"""
    run = run_python(code)
    assert (run.stdout, run.stderr) == ("server.run.api_process|hello\n", "")


def test_a_configuration_that_cannot_be_applied_is_an_error_with_the_flag():
    config = {"version": 1, "handlers": {"out": {"class": "nowhere.Handler"}}}
    with pytest.raises(ConfigError, match="--log-config-file.*nowhere"):
        configure_logging(LogOptions(level="INFO", config=config), role="api")


_BEGIN = """
import logging, sys, threading, warnings
from startup.logs.options import LogOptions
from startup.logs.setup import configure_logging, rename_process
configure_logging(LogOptions(level="INFO", format="json"), role="api", phase=lambda: "load_weights")
logger = logging.getLogger("server.run.api_process")
"""


def lines_of(code: str) -> list[dict[str, Any]]:
    """Runs a program. Returns the objects in its log."""
    run = run_python(_BEGIN + code)
    assert run.stdout == ""
    return [json.loads(line) for line in run.stderr.splitlines()]


def test_a_line_has_time_level_logger_phase_role_message_and_traceback():
    code = (
        "logger.info('%d tokens\\nof \\u00e9', 3)\ntry: 1 / 0\nexcept ZeroDivisionError: logger.exception('it failed')"
    )
    line, failed = lines_of(code)
    assert line["message"] == "3 tokens\nof é"
    known = {"level": "INFO", "logger": "server.run.api_process", "phase": "load_weights", "role": "api"}
    assert line.items() >= known.items()
    assert isinstance(line["pid"], int)
    assert line["time"].endswith("Z")
    time = datetime.fromisoformat(line["time"]).isoformat(timespec="milliseconds")
    assert time == line["time"].replace("Z", "+00:00")
    assert "request_id" not in line
    assert failed["message"] == "it failed"
    assert failed["exception"].startswith("Traceback (most recent call last):\n")
    assert failed["exception"].endswith("ZeroDivisionError: division by zero")


def test_uncaught_exceptions_warnings_and_prints_are_lines_too():
    lines = lines_of(
        """
print("a library says\\nsomething", file=sys.stderr)
print("Error: no such thing", file=sys.stderr)
warnings.warn("this is old")
def fail():
    raise KeyError("in a thread")
thread = threading.Thread(target=fail, name="worker"); thread.start(); thread.join()
sys.stderr.write("without an end")
print(", now", file=sys.stderr)
raise ValueError("at last")
"""
    )
    by_logger = {(line["logger"], line["level"]): line for line in lines}
    assert by_logger["stderr", "ERROR"]["message"] == "Error: no such thing"
    assert "this is old" in by_logger["py.warnings", "WARNING"]["message"]
    assert by_logger["uncaught", "ERROR"]["message"] == "thread worker: KeyError: 'in a thread'"
    assert by_logger["uncaught", "CRITICAL"]["exception"].endswith("ValueError: at last")
    plain = [line["message"] for line in lines if (line["logger"], line["level"]) == ("stderr", "INFO")]
    assert plain == ["a library says\nsomething", "without an end, now"]


_IGNORES_NESTED = """
def handle(logger, record, _handle=logging.Logger.handle, _state=threading.local()):
    if not getattr(_state, "is_busy", False):
        _state.is_busy = True
        try:
            _handle(logger, record)
        finally:
            _state.is_busy = False
logging.Logger.handle = handle
"""
"""Code that ignores records logged while a handler runs, as Python 3.13.4 does."""


@pytest.mark.parametrize("begin", ["", _IGNORES_NESTED], ids=["this Python", "Python 3.13.4"])
def test_records_of_a_library_with_its_own_handler_become_json(begin):
    (line,) = lines_of(
        begin
        + """
library = logging.getLogger("transformers")
library.addHandler(logging.StreamHandler(sys.stderr)); library.propagate = False
library.warning("look out")
"""
    )
    assert (line["logger"], line["level"], line["message"]) == ("stderr", "INFO", "look out")


def test_lines_of_a_request_have_its_id():
    line, other = lines_of(
        """
import asyncio
from base.http_requests import REQUEST_ID
async def serve(name):
    REQUEST_ID.set(name)
    await asyncio.create_task(work())
async def work():
    logger.info("working")
async def main():
    await asyncio.gather(serve("cmpl-1"), serve("cmpl-2"))
asyncio.run(main())
"""
    )
    assert {line["request_id"], other["request_id"]} == {"cmpl-1", "cmpl-2"}


def test_text_format_leaves_other_output_alone():
    code = _BEGIN.replace('format="json"', 'format="text"') + "logger.warning('careful'); print('raw', file=sys.stderr)"
    run = run_python(code)
    assert run.stderr.splitlines()[0].startswith("WARNING ")
    assert run.stderr.splitlines()[0].endswith("(api) server.run.api_process: careful")
    assert run.stderr.splitlines()[1] == "raw"


@pytest.mark.parametrize("path", ["/v1/completions", '/"quoted"'])
def test_access_log_lines_have_method_path_status_and_client(path):
    values = ("127.0.0.1:5", "POST", path, "1.1", 200)
    record = logging.LogRecord("uvicorn.access", logging.INFO, "", 0, '%s - "%s %s HTTP/%s" %d', values, None)
    line = json.loads(JsonFormatter("api", lambda: "serving").format(record))
    assert (line["method"], line["path"], line["status"], line["client"]) == ("POST", path, 200, "127.0.0.1:5")
    assert line["message"] == f'127.0.0.1:5 - "POST {path} HTTP/1.1" 200'
    assert line["pid"] == os.getpid()
