"""Answers probes on the server's own socket from the start's first moment until the HTTP server accepts.

The responder is a process that imports little code (standard library and msgspec). It is forked before
anything else is imported. A thread of the API process would answer 60 ms later or more, because imports and
tokenizers hold the interpreter lock for this long. While vLLM serves, the responder may go on, and accept
connections for vLLM (`keep`).
"""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

from startup.port import responder_process
from startup.port.acceptor import SERVE
from startup.port.listener import BACKLOG, is_listening
from startup.port.responder_process import Answers, OpenChannel, open_plain, run_process
from startup.processes import group_signals

logger = logging.getLogger(__name__)

_END_S = 5.0
"""Seconds within which the responder's process must exit after it was killed or has finished its work."""
_GIVE_UP_S = 5.0
"""Seconds that the HTTP server waits at most until the process stops accepting, usually for microseconds."""
_POLL_S = 0.01
_SEND_BUFFER_BYTES = 1
"""Size of the send buffer. With this size, the buffer is full half a second after the process hangs."""


class StartupResponder:
    """Serves `answers` on a listening socket between `start` and `hand_over`, in a separate process."""

    def __init__(
        self, listener: socket.socket, answers: Answers, prepare_channels: Callable[[], OpenChannel] = open_plain
    ) -> None:
        """`prepare_channels` is called in the responder's process, so that only that process imports TLS."""
        self._listener = listener
        self._answers = answers
        self._prepare_channels = prepare_channels
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._life_fd: int | None = None
        """Write end of the process's death pipe. The kernel kills the process when this end is closed."""
        self._pid: int | None = None
        self._takes_updates = True
        self._has_given_up = threading.Event()
        """Set once the process has confirmed that it no longer accepts, or has not replied in time."""
        self._waiting = threading.Lock()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Forks the process. Must be called before this process has a second thread: forks copy only one."""
        self._listener.setblocking(False)
        read_fd, self._life_fd = os.pipe()
        with group_signals.blocked():
            pid = os.fork()
            if pid == 0:  # the signals stay blocked here until they are ignored
                self._ours.close()
                os.close(self._life_fd)
                run_process(read_fd, self._theirs, self._listener, self._answers, self._prepare_channels)
        os.close(read_fd)
        self._theirs.close()
        self._ours.setblocking(False)
        self._pid = pid

    @property
    def address(self) -> Any:
        return self._listener.getsockname()

    def update(self, message: bytes) -> None:
        """Sends the state to the process. Does nothing if the process has exited or its queue is full."""
        if not self._takes_updates:
            return
        try:
            self._ours.send(message)
        except BlockingIOError:
            pass
        except OSError:
            self._takes_updates = False
            logger.warning("the responder process %s was killed: probes wait until the HTTP server accepts", self._pid)

    def hand_over(self) -> None:
        """Makes the process stop accepting, answer the clients that it has accepted, and exit.

        Returns once the process no longer accepts. So once the HTTP server has answered a client, no client
        gets an answer of the responder. Waits at most `_GIVE_UP_S`, because the process may be stopped
        (SIGSTOP).
        """
        self._takes_updates = False
        group_signals.start_thread("startup-responder-end", self._end)
        self._has_given_up.wait(_GIVE_UP_S)

    def keep(self) -> socket.socket | None:
        """Makes the responder's process accept for vLLM from now on. Call this instead of `hand_over`.

        Returns the API process's connection to the responder (`startup.port.acceptor`), or None if the
        responder has exited. To end the responder, end the connection's stream, or call `kill`.
        """
        self._takes_updates = False
        try:
            if not is_listening(self._listener):
                self._listener.listen(BACKLOG)
            self._ours.send(SERVE)
        except OSError:
            return None
        self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        return self._ours

    def close(self) -> None:
        """Ends the process and cuts connections that have not been answered."""
        self._ours.close()
        if self._life_fd is not None:
            os.close(self._life_fd)  # the kernel kills the process through its death pipe, even if it is stopped
            self._life_fd = None
        self._wait(_END_S)

    def _end(self) -> None:
        """Waits until the process exits. Kills it after a time limit, so that it does not go on accepting."""
        is_confirmed = False
        with suppress(OSError):
            self._ours.settimeout(responder_process.CONNECTION_S)
            self._ours.shutdown(socket.SHUT_WR)
            self._ours.recv(1)  # returns at the end of the process's stream
            is_confirmed = True
        self._has_given_up.set()
        if not self._wait(responder_process.CONNECTION_S + _END_S if is_confirmed else _END_S):
            logger.warning("the responder process %s does not release the socket and is killed", self._pid)
            self.kill()

    def kill(self) -> None:
        """Kills the process. If the process has exited already, only reaps it."""
        with self._waiting:
            if self._pid is not None:
                os.kill(self._pid, signal.SIGKILL)
        self._wait(_END_S)

    def _wait(self, timeout_s: float) -> bool:
        """Waits for the process and reaps it. Returns whether the process has exited in time."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            with self._waiting:
                if self._pid is None or _has_exited(self._pid):
                    self._pid = None
                    return True
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(_POLL_S)


def _has_exited(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:  # already reaped elsewhere
        return True
