"""Logs as JSON have one object per line, also for other output. Each test logs in a new process."""

import json
import logging
import os
from datetime import datetime
from typing import Any

import pytest

from startup.logs.json_lines import JsonFormatter
from tests.support.cli import run_python

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
from base.request_ids import REQUEST_ID
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
