"""Ends this process without freeing its modules and objects, which takes up to a second.

Some libraries also report leaks when they are freed.
"""

import atexit
import os
import sys
from contextlib import suppress


class _End:
    is_prepared = False


def end_without_finalizing(exit_code: int) -> int:
    """Runs the exit functions now; the end of the interpreter will be that of the process, with this code."""
    if not _End.is_prepared:
        _End.is_prepared = True
        atexit._run_exitfuncs()
        atexit.register(_exit, exit_code)
    return exit_code


def _exit(exit_code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it, or it is closed
            stream.flush()
    os._exit(exit_code)
