"""The forks of a process, each for a connection on which another process has requested it."""

import os
import select
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from base.machine.descriptors import move_up
from startup.processes.messages import ENDED, encode

_adopted: Final[set[int]] = set()


def adopt(pid: int) -> None:
    """Makes `Forks` also wait for a process that was forked otherwise, so that it leaves no zombie."""
    _adopted.add(pid)


class Forks:
    """Forks this process, and reports how the forks end. Handles SIGCHLD. Is created on the main thread."""

    def __init__(self, on_end: Callable[[int, int], None] | None = None) -> None:
        """`on_end` is called with pid and exit code of a fork that has ended, before its end is reported."""
        self._on_end = on_end
        self.connections: dict[int, socket.socket] = {}
        """The connections of the forks that run, by pid."""
        self._fds = tuple(map(move_up, os.pipe()))
        for fd in self._fds:
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self._fds[1], warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._reap()  # adopted ones that have ended before

    def wait(self, *fds: int) -> tuple[set[int], list[int]]:
        """Waits until a descriptor is readable or forks have ended. Returns the descriptors and the forks.

        Reports the exit code of each such fork on its connection.
        """
        poll = select.poll()
        for fd in (self._fds[0], *fds):
            poll.register(fd, select.POLLIN)
        readable = {fd for fd, _ in poll.poll()}
        return readable, self._reap() if self._fds[0] in readable else []

    def fork(self, connection: socket.socket, *others: socket.socket) -> bool:
        """Forks a process for the connection. Returns True in the fork, where `others` are closed.

        Raises:
            OSError: there is no fork.
        """
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
        for other in (*self.connections.values(), *others):
            other.close()
        self.connections.clear()
        return True

    def _reap(self) -> list[int]:
        with suppress(BlockingIOError):
            os.read(self._fds[0], 4096)
        for pid in list(_adopted):
            with suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    continue
            _adopted.discard(pid)
        found = []
        for pid in list(self.connections):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            found.append(pid)
            code = os.waitstatus_to_exitcode(status)
            if self._on_end is not None:
                self._on_end(pid, code)
            with self.connections.pop(pid) as connection, suppress(OSError):
                connection.send(encode([ENDED, b"%d" % code]), socket.MSG_DONTWAIT)
        return found
