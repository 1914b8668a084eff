"""Formats log lines as text. Each line names its process by its role, such as `engine`."""

import logging
import re
import time
from typing import Final

CONTROL_CHARACTERS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, except tab and newline. They could move a cursor, change colours or reverse text.

Surrogates are no text, and cannot be written."""

_LINE_BREAK: Final = re.compile(r"\n(?=[^\n])")
_CONTINUATION: Final = "\n  "
_TEXT: Final = "%(levelname)s %(asctime)s (%(role)s) %(name)s: %(message)s"
_LOCAL: Final = "%m-%d %H:%M:%S"
"""vLLM's time format, in the machine's time zone."""
UTC: Final = "%Y-%m-%dT%H:%M:%SZ"
"""The time format of `--log-format text-utc`."""


class RoleFormatter(logging.Formatter):
    """Formats log records of the process with this role. Log records themselves contain no role."""

    def __init__(self, role: str, layout: str | None = None, *, datefmt: str | None = None) -> None:
        super().__init__(layout, datefmt=datefmt)
        self.role = role


class TextFormatter(RoleFormatter):
    """Formats a record as level, time, role of the process, module and message.

    Messages and tracebacks may contain text of clients and models. Continuation lines of a record are
    indented, so that no such text can look like a record of its own. Control characters are escaped.
    """

    def __init__(self, role: str, *, is_utc: bool = False) -> None:
        super().__init__(role, _TEXT, datefmt=UTC if is_utc else _LOCAL)
        if is_utc:
            self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        return _LINE_BREAK.sub(_CONTINUATION, escape_controls(super().format(record)))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        record.role = self.role
        return super().formatMessage(record)


def escape_controls(text: str) -> str:
    """Replaces control characters with Python's escapes, such as `\\x1b`."""
    return CONTROL_CHARACTERS.sub(lambda found: ascii(found[0])[1:-1], text)
