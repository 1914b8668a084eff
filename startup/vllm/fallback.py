"""What is done where this package's help does harm: the program starts anew, with less of it."""

import os
import sys
import traceback
from typing import NoReturn


def exec_again(variable: str, value: str) -> NoReturn:
    """The same command in the same process with a variable set; nothing that was half done outlives `exec`.

    The words are the interpreter's: those in /proc/self/cmdline may have been masked.
    """
    os.environ[variable] = value
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, sys.orig_argv)


def is_raised_in(err: BaseException, folder: str) -> bool:
    """Whether code of the folder was at work where the error, or what caused it, was raised."""
    chain: BaseException | None = err
    while chain is not None:
        frames = traceback.extract_tb(chain.__traceback__)
        if frames and folder in frames[-1].filename:
            return True
        chain = chain.__cause__ or chain.__context__
    return False
