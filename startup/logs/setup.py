"""The logs of every process of a start: one format, to standard error, or what a configuration file says."""

import logging
import re
import sys
from collections.abc import Callable
from typing import Final, TextIO

from startup.logs.options import LogOptions
from startup.logs.steady_handler import SteadyHandler

PACKAGES: Final = ("vllm_cli", "startup", "server", "envs")
"""Roots of this project's loggers."""

CONTROL_CHARACTERS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""What moves a terminal's cursor, changes its colours, or turns the order of letters round; not tab and line break."""

_LINE_BREAK: Final = re.compile(r"\n(?=[^\n])")
_CONTINUATION: Final = "\n  "
_TEXT: Final = "%(levelname)s %(asctime)s (%(role)s) %(name)s: %(message)s"


class RoleFormatter(logging.Formatter):
    """Knows what this process is, which a record does not."""

    def __init__(self, role: str, layout: str | None = None, *, datefmt: str | None = None) -> None:
        super().__init__(layout, datefmt=datefmt)
        self.role = role


class TextFormatter(RoleFormatter):
    """Level, time, role of the process, module, message.

    Texts of clients and models get into messages and tracebacks. Lines that belong to a record are indented behind its
    first one, so that no text can look like a record of its own; control characters are shown as escapes.
    """

    def __init__(self, role: str) -> None:
        super().__init__(role, _TEXT, datefmt="%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """One record, which only its first line begins at the left margin."""
        return _LINE_BREAK.sub(_CONTINUATION, escape_controls(super().format(record)))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """Adds the role."""
        record.role = self.role
        return super().formatMessage(record)


def configure_logging(options: LogOptions, *, role: str, phase: Callable[[], str] = lambda: "") -> None:
    """Sends this project's logs to standard error from the level on; other libraries speak from WARNING on.

    Args:
        role: what this process is: `api`, `engine`, `responder`, ...
        phase: tells what the process is at; asked with each line of JSON.

    Raises:
        ConfigError: the configuration file cannot be applied.
    """
    if options.config is not None:
        from startup.logs.config_file import apply_log_config

        apply_log_config(options.config)
        return
    handler: logging.Handler = SteadyHandler(real_stderr())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in (*PACKAGES, "uvicorn"):
        logging.getLogger(name).setLevel(options.level)
    if options.format == "json":
        from startup.logs.json_lines import JsonFormatter, turn_into_lines

        handler.setFormatter(JsonFormatter(role, phase))
        turn_into_lines()
    else:
        handler.setFormatter(TextFormatter(role))


def real_stderr() -> TextIO:
    """Standard error itself, below what turns other things that are written there into lines."""
    stream: TextIO = getattr(sys.stderr, "below", sys.stderr)
    return stream


def escape_controls(text: str) -> str:
    """The text with what a terminal would obey shown instead, as Python writes it: `\\x1b`."""
    return CONTROL_CHARACTERS.sub(lambda found: ascii(found[0])[1:-1], text)


def rename_process(role: str) -> None:
    """What a forked process calls itself, once it goes its own way."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, RoleFormatter):
            handler.formatter.role = role
