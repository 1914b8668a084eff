"""Text in a record cannot forge a line or control a terminal. `--log-config-file` is applied."""

import io
import logging
import sys
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


HANDLERS = {"out": {"class": "logging.StreamHandler", "formatter": "short", "stream": "ext://sys.stdout"}}
FORMATTERS_OF_VLLM = {"short": {"class": "vllm.logging_utils.NewLineFormatter", "format": "%(name)s|%(message)s"}}
VLLM_FILE: dict[str, Any] = {
    "version": 1,
    "formatters": FORMATTERS_OF_VLLM,
    "handlers": HANDLERS,
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
