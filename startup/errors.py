"""Errors of a start. For most of them, `vllm-cli` exits with code 3.

An error has a cause, which is a name such as `port-in-use`. `vllm_cli/explain/known_causes.yaml` lists
them.
"""

import errno
import threading
from collections.abc import Callable
from typing import Final

from base.errors import with_causes

_REFUSALS: Final = (
    errno.EADDRINUSE,
    errno.EADDRNOTAVAIL,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EAGAIN,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
)
USAGE_CAUSE: Final = "usage"
OWN_FAULT_CAUSE: Final = "vllm-cli"
"""The cause of a failure of this program's code, which plain vLLM would not have."""
UNKNOWN_CAUSE: Final = "unknown"
"""The cause of an error if no other cause is known."""
NOT_STARTED_CAUSE: Final = "program-not-started"
"""The cause of a model's start that failed before its program ran."""
TIMEOUT_CAUSE: Final = "startup-timeout"
"""The cause of a start or download that took longer than its limit."""
CODE_LINE: Final = "Code: "
"""The text before the code in an error message."""


def code_of(cause: str) -> str:
    """Returns the code for logs, crash digests and the documentation, such as `VC-PORT-IN-USE`."""
    return f"VC-{cause.upper()}"


def code_line(cause: str) -> str:
    """Returns the line of an error message that contains the code of the cause."""
    return f"{CODE_LINE}{code_of(cause)}"


def with_code(message: str, cause: str) -> str:
    """Appends the line with the code to an error message. A crash digest with this line is unchanged."""
    line = code_line(cause)
    return message if line in message else f"{message}\n{line}"


def log_with_code(log: Callable[..., None], message: str, cause: str) -> None:
    """Logs the message with the code of its cause. `log` is a logger's method, such as `logger.error`."""
    log("%s", with_code(message, cause), extra={"code": code_of(cause)})


def is_of_machine(err: BaseException) -> bool:
    """Whether the machine lacked an address, room, memory, a thread or a permission. It may have it later."""
    return any(map(_is_refusal, with_causes(err)))


def _is_refusal(err: BaseException) -> bool:
    innermost = err.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    if innermost is not None and innermost.tb_frame.f_code is threading.Thread.start.__code__:
        return True  # a RuntimeError, like many others
    is_memory = any(kind.__name__ in ("MemoryError", "OutOfMemoryError") for kind in type(err).__mro__)
    return is_memory or getattr(err, "errno", None) in _REFUSALS


class StartupError(Exception):
    """The server cannot start. The message names the value at fault and the fix."""

    cause: str = UNKNOWN_CAUSE

    def __init__(self, message: str, *, cause: str | None = None) -> None:
        super().__init__(message)
        self.cause = cause or self.cause


class CommandLineError(StartupError):
    """The engine rejects words of its command line, or does not support this Python. The exit code is 2."""

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
