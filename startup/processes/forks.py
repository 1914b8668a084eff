"""The forks of a process, each for a connection on which another process has requested it."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress

from base.machine.descriptors import move_up
from startup.processes.messages import ENDED, encode


class Forks:
    """Forks this process, and reports how the forks end. Handles SIGCHLD. Is created on the main thread."""

    def __init__(self) -> None:
        self.connections: dict[int, socket.socket] = {}
        """The connections of the forks that run, by pid."""
        self._fds = tuple(map(move_up, os.pipe()))
        for fd in self._fds:
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self._fds[1], warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def fileno(self) -> int:
        """A descriptor that becomes readable once a fork has ended."""
        return self._fds[0]

    def fork(self, connection: socket.socket) -> bool:
        """Forks a process for the connection. Returns True in the fork. Raises OSError if there is none."""
        try:
            pid = os.fork()
        except OSError:
            connection.close()
            raise
        if pid:
            self.connections[pid] = connection
            return False
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for fd in self._fds:
            os.close(fd)
        for other in self.connections.values():
            other.close()
        self.connections.clear()
        return True

    def reap(self, on_end: Callable[[int, int], None] | None = None) -> Iterator[int]:
        """Reports the exit code of each fork that has ended on its connection. Yields its pid.

        `on_end` is called before the report, with pid and exit code.
        """
        with suppress(BlockingIOError):
            os.read(self._fds[0], 4096)
        for pid in list(self.connections):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            code = os.waitstatus_to_exitcode(status)
            if on_end is not None:
                on_end(pid, code)
            with self.connections.pop(pid) as connection, suppress(OSError):
                connection.send(encode([ENDED, b"%d" % code]), socket.MSG_DONTWAIT)
            yield pid
