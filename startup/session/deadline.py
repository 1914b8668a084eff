"""Limits the duration of a start. At the limit, logs phase and stacks of threads, and ends the process."""

import faulthandler
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable

from base.exit_codes import START_FAILED
from startup.errors import TIMEOUT_CAUSE, log_with_code
from startup.processes import group_signals

logger = logging.getLogger(__name__)


def start_deadline(limit_s: float, describe: Callable[[], str]) -> threading.Timer:
    """Starts the timer of the limit. Call the timer's `cancel` once the start has finished.

    The main thread may be in an import or a system call, where no exception reaches it. So the timer's thread
    itself kills the engine process and then ends this process.
    """
    timer = threading.Timer(limit_s, _expire, (limit_s, describe))
    timer.name, timer.daemon = "start-deadline", True
    with group_signals.blocked():
        timer.start()
    return timer


def _expire(limit_s: float, describe: Callable[[], str]) -> None:
    logger.error("stacks of all threads:\n%s", _stacks())
    message = f"the start took longer than --startup-timeout {limit_s:g} s, in phase {describe()}"
    log_with_code(logger.error, message, TIMEOUT_CAUSE)
    for child in multiprocessing.active_children():
        if child.pid is not None:
            os.kill(child.pid, signal.SIGKILL)
    sys.stderr.flush()
    os._exit(START_FAILED)


def _stacks() -> str:
    """The stacks of all threads. C code writes them, because it needs no lock that a thread may hold."""
    # faulthandler writes only to a file with a descriptor.
    with os.fdopen(os.memfd_create("stacks"), "w+", encoding="utf-8", errors="replace") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
