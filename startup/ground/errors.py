"""Errors of a start; the command line translates them into exit code 3."""

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
"""How the line with a code begins."""


def code_of(cause: str) -> str:
    """The code of a cause in logs, digests and the documentation: `VC-PORT-IN-USE` of `port-in-use`."""
    return f"VC-{cause.upper()}"


def code_line(cause: str) -> str:
    """The line of an error that has the code of its cause."""
    return f"{CODE_LINE}{code_of(cause)}"


def with_code(message: str, cause: str) -> str:
    """The message of an error that ends a start, with its code in the last line; a digest has it already."""
    line = code_line(cause)
    return message if line in message else f"{message}\n{line}"


def log_with_code(log: Callable[..., None], message: str, cause: str) -> None:
    """Logs the message with the code of its cause; `log` is a method of a logger."""
    log("%s", with_code(message, cause), extra={"code": code_of(cause)})


class StartupError(Exception):
    """The server cannot start; the message names the value and the fix."""

    cause: str = UNKNOWN_CAUSE
    """A name of the tables in `startup.reports.causes.known`."""

    def __init__(self, message: str, *, cause: str | None = None) -> None:
        super().__init__(message)
        self.cause = cause or self.cause


class CommandLineError(StartupError):
    """The engine refuses words of its command line, or this Python; exit code 2."""

    cause = USAGE_CAUSE


class ModelNotFoundError(StartupError):
    """The model is neither a readable folder nor available from the hub."""

    cause = "model-not-found"


class PortInUseError(StartupError):
    """Another process listens on the address."""

    cause = "port-in-use"


class CrashError(StartupError):
    """A process of the server has failed, during the start or later; the message is the crash digest."""

    def __init__(self, message: str, *, exit_code: int, json_line: str | None = None, cause: str | None = None) -> None:
        super().__init__(message, cause=cause)
        self.exit_code = exit_code
        self.json_line = json_line
        """The digest as a JSON line, for a log in JSON."""
