"""Starts the program again with fewer optimisations, after one of them has failed."""

import os
import signal
import sys
import traceback
from typing import NoReturn

from startup.timeline import start_origin


def exec_again(variable: str, value: str) -> NoReturn:
    """Executes the same command in this process with a variable set, which discards all of its state.

    The words are `sys.orig_argv`: those in /proc/self/cmdline may have been masked. A process forked from a
    standby's would not be its client's any more: there the client executes the command.
    """
    if start_origin.start_again is not None:
        start_origin.start_again(variable, value)
    if callable(signal.getsignal(signal.SIGINT)):
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's handler would only record it, and `exec` forget that
    os.environ[variable] = value
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, sys.orig_argv)


def is_raised_in(err: BaseException, folder: str) -> bool:
    """Whether the error or one of its causes was raised by code in the folder."""
    chain: BaseException | None = err
    while chain is not None:
        frames = traceback.extract_tb(chain.__traceback__)
        if frames and folder in frames[-1].filename:
            return True
        chain = chain.__cause__ or chain.__context__
    return False
