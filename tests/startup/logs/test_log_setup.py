"""Text in a record cannot forge a line or control a terminal; lines that cannot be written are counted."""

import io
import logging
import re
import sys

import pytest

from startup.logs.json_lines import JsonFormatter
from startup.logs.setup import SteadyHandler, TextFormatter
from tests.cli import run_python

_FORGED = "INFO 11-20 18:00:00 (api) server.run: all is well"
_HOSTILE = f"x\r\n{_FORGED}\x1b[2J\x9b31m\x07\x7f\u2028\u202e\x00\n\n{_FORGED}"

FORMATTERS = pytest.mark.parametrize(
    "formatter", [TextFormatter("api"), JsonFormatter("api", lambda: "serving")], ids=["text", "json"]
)


def _record(message: str, *args: object, is_exception: bool = False) -> logging.LogRecord:
    exc_info = None
    if is_exception:
        try:
            raise ValueError(_HOSTILE)
        except ValueError:
            exc_info = sys.exc_info()
    return logging.LogRecord("server.x", logging.ERROR, __file__, 1, message, args, exc_info)


@FORMATTERS
@pytest.mark.parametrize("is_exception", [False, True], ids=["message", "traceback"])
def test_a_record_has_no_control_characters(formatter, is_exception):
    text = formatter.format(_record("%s", _HOSTILE, is_exception=is_exception))
    assert [c for c in text if not c.isprintable() and c != "\n"] == []
    assert "x1b[2J" in text or "u001b[2J" in text


@FORMATTERS
def test_continuation_lines_are_indented(formatter):
    _, *others = formatter.format(_record("%s", _HOSTILE, is_exception=True)).splitlines()
    assert [line for line in others if line and not line.startswith("  ")] == []


def test_printable_characters_are_unchanged():
    text = TextFormatter("api").format(_record("größe\t日本 %s", "🙂 \\x1b"))
    assert text.endswith("(api) server.x: größe\t日本 🙂 \\x1b")


def test_a_traceback_stays_readable():
    code = """
import logging
from startup.logs.options import LogOptions
from startup.logs.setup import configure_logging
configure_logging(LogOptions(level="INFO"), role="api")
try:
    int("\\x1b[31m\\n0")
except ValueError:
    logging.getLogger("server").exception("it failed")
"""
    done = run_python(code)
    first, *rest = done.stderr.splitlines()
    assert re.fullmatch(r"ERROR \d\d-\d\d \d\d:\d\d:\d\d \(api\) server: it failed", first)
    assert rest[0] == "  Traceback (most recent call last):"
    assert rest[-1].startswith("  ValueError: invalid literal for int()")


class _Disk(io.StringIO):
    """Raises on each write while it is full."""

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
