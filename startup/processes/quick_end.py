"""Ends this process, either quickly, without freeing its modules and objects, or by a signal.

Freeing modules and objects takes up to a second, and some libraries then report leaks.
"""

import atexit
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

TYPE_CHECKING = False  # a warm start waits for this module: the import of `typing` would delay it
if TYPE_CHECKING:
    from typing import NoReturn


class _End:
    is_prepared = False
    last: Callable[[], None] | None = None


def call_last(function: Callable[[], None]) -> None:
    """Makes the other functions of this module call `function` after all exit functions, also in forks."""
    _End.last = function


def end_without_finalizing(exit_code: int) -> int:
    """Runs the exit functions now. The process will exit with this code as soon as the interpreter ends."""
    if not _End.is_prepared:
        _End.is_prepared = True
        atexit._run_exitfuncs()
        atexit.register(_exit, exit_code)
    return exit_code


def end_now(exit_code: int) -> "NoReturn":
    """Runs the exit functions, then ends this process."""
    try:
        atexit._run_exitfuncs()
    finally:
        _exit(exit_code)


def _exit(exit_code: int) -> "NoReturn":
    if _End.last is not None:
        _End.last()
    flush_output()
    os._exit(exit_code)


def flush_output() -> None:
    """Writes the buffered text of standard output and standard error, as far as possible."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with suppress(OSError, ValueError, RuntimeError):  # closed, not read, or interrupted by a signal
            stream.flush()


def end_like(status: int) -> int:
    """Returns an exit code unchanged. A status -N ends this process with signal N and without a core dump."""
    if status >= 0:
        return status
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with suppress(OSError, ValueError):  # SIGKILL and SIGSTOP have no handler
        signal.signal(-status, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [-status])
    os.kill(os.getpid(), -status)
    return 128 - status
