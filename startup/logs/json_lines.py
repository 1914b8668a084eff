"""Writes logs as JSON, one object per line: records of all loggers, warnings and uncaught exceptions.

Output that does not pass through Python, such as the message of a crashing C library, is unchanged.
"""

import io
import json
import logging
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, TextIO

from base.access_log import ACCESS_LOGGER
from base.http_requests import REQUEST_ID
from startup.logs.formatters import CONTROL_CHARACTERS, RoleFormatter

_ACCESS_FIELDS: Final = ("client", "method", "path", "http_version", "status")
"""Names for the arguments of uvicorn's access log records, in order."""
_FOREIGN_LOGGERS: Final = ("transformers", "huggingface_hub")
"""Libraries that install log handlers of their own."""
_LEVELS: Final = {"Error": logging.ERROR, "Warning": logging.WARNING, "Notice": logging.WARNING}
"""First words of the command line's messages, and the log level of each."""


class JsonFormatter(RoleFormatter):
    """Formats a record as a JSON object on one line.

    Each object has time, level, logger, message, phase, pid and role. Request id, fields of the access log,
    traceback, code and digest are added if the record has them.
    """

    def __init__(self, role: str, phase: Callable[[], str] | None) -> None:
        """`phase` returns the current phase of the start. If it is None, lines have no member `phase`."""
        super().__init__(role)
        self._phase = phase

    def role_of(self, record: logging.LogRecord) -> str:
        return self.role

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC)
        fields: dict[str, Any] = {
            "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **({"phase": self._phase()} if self._phase else {}),
            "pid": record.process,
            "role": self.role_of(record),
        }
        if request_id := getattr(record, "request_id", None) or REQUEST_ID.get():
            fields["request_id"] = request_id
        if record.name == ACCESS_LOGGER and isinstance(record.args, tuple):
            fields |= zip(_ACCESS_FIELDS, record.args, strict=False)
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = record.stack_info
        of_failure = {name: getattr(record, name, None) for name in ("code", "digest")}
        fields |= {name: value for name, value in of_failure.items() if value is not None}
        line = json.dumps(fields, ensure_ascii=False, default=str)
        return CONTROL_CHARACTERS.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def format_warning(message: str) -> str:
    """Formats a warning of the command line as one JSON line, before logging is configured."""
    record = logging.LogRecord("vllm_cli", logging.WARNING, "", 0, "%s", (message,), None)
    return JsonFormatter("api", lambda: "command_line").format(record)


class LineStream(io.TextIOBase):
    """Replaces `sys.stderr`. Text written to it becomes log records named `stderr`, which `handler` writes.

    A record ends where the text of a `write` ends with a line break, so a message of several lines stays
    together. Records do not pass through a logger, because handlers of libraries write to this stream. Python
    3.13.4 and 3.13.5 ignore records that are logged while a handler runs.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, below: TextIO, handler: logging.Handler) -> None:
        self.below = below
        self.handler = handler
        self._part = threading.local()

    def write(self, text: str) -> int:
        """Logs complete lines. Text that a failing handler writes meanwhile goes to `below`."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if getattr(self._part, "is_busy", False):
            return self.below.write(text)
        self._part.text = getattr(self._part, "text", "") + text
        if text.endswith(("\n", "\r")):
            self._part.is_busy = True
            try:
                self._hand_over()
            finally:
                self._part.is_busy = False
        return len(text)

    def flush(self) -> None:
        self.below.flush()

    def fileno(self) -> int:
        return self.below.fileno()

    def isatty(self) -> bool:
        """False: live lines and colours would break the JSON."""
        return False

    def writable(self) -> bool:
        return True

    def _hand_over(self) -> None:
        message, self._part.text = self._part.text.strip(), ""
        if message:
            level = _LEVELS.get(message.partition(":")[0], logging.INFO)
            create = logging.getLogRecordFactory()
            self.handler.handle(create("stderr", level, "", 0, "%s", (message,), None))


def log_everything_as_json(handler: logging.Handler) -> None:
    """Makes `handler` log warnings, uncaught exceptions, and all text written to `sys.stderr`."""
    if isinstance(sys.stderr, LineStream):
        sys.stderr.handler = handler
    else:
        sys.stderr = LineStream(sys.stderr, handler)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    for name in _FOREIGN_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


def _log_uncaught(kind: type[BaseException], err: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("uncaught").critical("%s: %s", kind.__name__, err, exc_info=(kind, err, trace))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not issubclass(args.exc_type, SystemExit):
        name = args.thread.name if args.thread else "?"
        logging.getLogger("uncaught").error(
            "thread %s: %s: %s",
            name,
            args.exc_type.__name__,
            args.exc_value,
            exc_info=(args.exc_type, args.exc_value, args.exc_traceback),
        )
