"""Limits the duration of a start: at the limit, logs phase and stacks of threads, and ends the process."""

import faulthandler
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from base.exit_codes import START_FAILED
from startup.ground.processes import group_signals

logger = logging.getLogger(__name__)


class StartDeadline:
    """Runs between enter and `cancel`; without a limit it does nothing.

    The main thread may be in an import or a system call, where no exception reaches it: the timer's thread
    kills the engine process and then exits this process.
    """

    def __init__(self, limit_s: float | None, describe: Callable[[], str]) -> None:
        self._limit_s = limit_s
        self._describe = describe
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        if self._limit_s is not None:
            self._timer = threading.Timer(self._limit_s, self._expire)
            self._timer.name = "start-deadline"
            self._timer.daemon = True
            group_signals.start_thread(self._timer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Stops the timer: the start has finished in time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        logger.error("the start took longer than --startup-timeout %g s, in phase %s", self._limit_s, self._describe())
        logger.error("stacks of all threads:\n%s", _stacks())
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, signal.SIGKILL)
        sys.stderr.flush()
        os._exit(START_FAILED)


def _stacks() -> str:
    """The stacks of all threads, written by C code, which takes no lock that a thread may hold."""
    # faulthandler writes only to a file with a descriptor.
    with os.fdopen(os.memfd_create("stacks"), "w+", encoding="utf-8", errors="replace") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
