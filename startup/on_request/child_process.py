"""A process that the front starts: the server, which ends with the front, however that ends."""

import fcntl
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple, NoReturn

from envs import foreign
from envs.registry import env
from startup.probes.front_link import FrontOffer
from startup.processes import death_pipe

_LOWEST_FD: Final = 64
"""The numbers of inherited descriptors begin here, where neither users nor libraries have any."""
_OF_THE_MANAGER: Final = (env.NOTIFY_SOCKET, env.WATCHDOG_USEC, env.WATCHDOG_PID)
"""Variables for the front, whose process the service manager knows."""
_RESET: Final = (signal.SIGPIPE, signal.SIGXFSZ)
"""Python ignores them; a program that is executed gets their default actions, as from a shell."""


class ServerCommand(NamedTuple):
    """How a server is started."""

    words: Sequence[str]
    """The words after `serve`."""
    variables: dict[str, str]
    """Environment variables beyond those of the front."""


class ServerProcess:
    """One server; the leader of its own process group, so that Ctrl-C reaches it only through the front."""

    def __init__(self, pid: int, link: socket.socket) -> None:
        self.pid = pid
        self.link = link
        self.pidfd = os.pidfd_open(pid)
        """Readable once the process has ended."""

    @classmethod
    def start(cls, command: ServerCommand, listener: socket.socket, offer: FrontOffer) -> "ServerProcess":
        """Starts it; to be called on the main thread. Process and descriptors of the offer are set here."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        front_pid = os.getpid()
        files_limit = _FILES_LIMIT
        pid = os.fork()
        if pid == 0:
            try:
                os.setpgid(0, 0)
                death_pipe.follow_parent(front_pid)
                resource.setrlimit(resource.RLIMIT_NOFILE, files_limit)
                _execute(command, theirs, listener, offer)
            finally:
                os._exit(127)
        with suppress(OSError):  # it may have executed its program already
            os.setpgid(pid, pid)
        theirs.close()
        return cls(pid, ours)

    def signal(self, number: int) -> None:
        """Sends a signal to the process itself."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """Sends a signal to the process and to those of its processes that are in its group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def poll(self) -> int | None:
        """How the process has ended: its exit code, or -N after signal N; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def close(self) -> None:
        """Releases what belongs to a process that has ended."""
        os.close(self.pidfd)
        self.link.close()


_FILES_LIMIT: Final = resource.getrlimit(resource.RLIMIT_NOFILE)
"""As the front was started with it, before it raises its own."""


def _execute(command: ServerCommand, link: socket.socket, listener: socket.socket, offer: FrontOffer) -> NoReturn:
    """Becomes `serve` of this program, called as this process was."""
    for number in _RESET:
        signal.signal(number, signal.SIG_DFL)
    link_fd, listener_fd = (fcntl.fcntl(each, fcntl.F_DUPFD, _LOWEST_FD) for each in (link, listener))
    offer = offer._replace(pid=os.getpid(), link_fd=link_fd, listener_fd=listener_fd)
    program = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv[1:])]
    environment = foreign.snapshot() | command.variables | {env.VCLI_FRONT.name: offer.encode()}
    for variable in _OF_THE_MANAGER:
        environment.pop(variable.name, None)
    os.execve(sys.executable, [*program, "serve", *command.words], environment)


def describe_end(code: int) -> str:
    """The end of a process as text."""
    if code >= 0:
        return f"The server ended with exit code {code}"
    with suppress(ValueError):
        return f"The server was ended by {signal.Signals(-code).name}"
    return f"The server was ended by signal {-code}"
