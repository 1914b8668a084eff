"""Errors of a start. The command line exits with code 3 for most of them."""

from collections.abc import Callable
from typing import Final

USAGE_CAUSE: Final = "usage"
"""The cause of errors with exit code 2."""
UNKNOWN_CAUSE: Final = "unknown"
"""The cause of errors whose cause has no name."""
NOT_STARTED_CAUSE: Final = "program-not-started"
"""The cause of a model's start that failed before its program ran."""
TIMEOUT_CAUSE: Final = "startup-timeout"
"""The cause of a start or download that took longer than its limit."""
CODE_LINE: Final = "Code: "
"""The beginning of the line with a code."""


def code_of(cause: str) -> str:
    """The code of a cause in logs, digests and the documentation: `VC-PORT-IN-USE` of `port-in-use`."""
    return f"VC-{cause.upper()}"


def code_line(cause: str) -> str:
    """The line of an error message that contains the code of the cause."""
    return f"{CODE_LINE}{code_of(cause)}"


def with_code(message: str, cause: str) -> str:
    """Appends the line with the code to an error message, unless it is there, as in a crash digest."""
    line = code_line(cause)
    return message if line in message else f"{message}\n{line}"


def log_with_code(log: Callable[..., None], message: str, cause: str) -> None:
    """Logs the message with the code of its cause. `log` is a method of a logger."""
    log("%s", with_code(message, cause), extra={"code": code_of(cause)})


class StartupError(Exception):
    """The server cannot start. The message names the value at fault and the fix."""

    cause: str = UNKNOWN_CAUSE
    """The name of a cause, as in the tables of `startup.reports.causes.known`."""

    def __init__(self, message: str, *, cause: str | None = None) -> None:
        super().__init__(message)
        self.cause = cause or self.cause


class CommandLineError(StartupError):
    """The engine rejects words of its command line, or does not support this Python. Exit code 2."""

    cause = USAGE_CAUSE


class ModelNotFoundError(StartupError):
    """The model is neither a readable folder nor available from the hub."""

    cause = "model-not-found"


class PortInUseError(StartupError):
    """Another process listens on the address."""

    cause = "port-in-use"


class CrashError(StartupError):
    """A process of the server has failed, during the start or later. The message is the crash digest."""

    def __init__(self, message: str, *, exit_code: int, json_line: str | None = None, cause: str | None = None) -> None:
        super().__init__(message, cause=cause)
        self.exit_code = exit_code
        self.json_line = json_line
        """The digest as a JSON line, for a log in JSON."""
