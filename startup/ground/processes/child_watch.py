"""Reports which forked processes have ended, through a file descriptor for the parent's event loop."""

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress

from base.machine.descriptors import move_up


class ChildWatch:
    """Handles this process's SIGCHLD. Must be created on the main thread."""

    def __init__(self) -> None:
        self._fds = tuple(map(move_up, os.pipe()))
        for fd in self._fds:
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self._fds[1], warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def fileno(self) -> int:
        """A descriptor that becomes readable once a forked process has ended."""
        return self._fds[0]

    def reap(self, pids: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Yields pid and exit code of each of these processes that has ended."""
        with suppress(BlockingIOError):
            os.read(self._fds[0], 4096)
        for pid in list(pids):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                yield pid, os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """Restores the default handling of SIGCHLD. Called in a fork, which has no children."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for fd in self._fds:
            os.close(fd)
