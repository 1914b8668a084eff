"""Forwards signals from the front process to its forked server, and ends the front process like the server.

The front process is the process that the user has started. The server has its own session, because a process
cannot join another process's session. So the front process forwards the signals that the terminal or a
service manager sends.
"""

import os
import select
import signal
import socket
import sys
from contextlib import suppress

from startup.processes import messages
from startup.processes.quick_end import end_like

TYPE_CHECKING = False  # the import of `typing` would delay the start
if TYPE_CHECKING:
    from startup.port.notify_relay import NotifyRelay

_TO_MAIN = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGALRM,
    signal.SIGIO,
)
"""Signals for the server's main process. A service manager would send them to the main process, too."""
_STOPS = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
"""Job control signals. Such a signal stops all processes of the server, and then the front process."""
_HANDLED = (*_TO_MAIN, *_STOPS, signal.SIGCONT)
_ENDS = (signal.SIGINT, signal.SIGTERM)
"""Signals that end the server even if it was started with these signals ignored, as after `&` in a script."""
_STATUS_S = 1.0
"""The limit for the template process's report of how the server ended, in seconds."""
_KILLED = 128 + signal.SIGKILL


def follow_server(
    connection: socket.socket, server_pid: int, server_fd: int, life_fd: int, relay: "NotifyRelay | None"
) -> int:
    """Waits for the server's end.

    Args:
        connection: the connection to the server's process and to the template process.
        server_pid: the leader of the server's process group.
        server_fd: a pidfd of this leader.
        life_fd: a pipe that kills the server when the kernel closes it at the end of this process.
        relay: receives the server's messages to the service manager.

    Returns:
        The server's exit code. A server that was killed by a signal ends this process by the same signal.
    """
    wakeup_fd, signals_fd = os.pipe()
    os.set_blocking(wakeup_fd, False)
    os.set_blocking(signals_fd, False)
    signal.set_wakeup_fd(signals_fd, warn_on_full_buffer=False)
    for number in _HANDLED:
        if number in _ENDS or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    status = _Server(connection, server_pid, server_fd, relay).wait(wakeup_fd)
    os.close(life_fd)
    return end_like(status)


class _Server:
    def __init__(self, connection: socket.socket, pid: int, pidfd: int, relay: "NotifyRelay | None") -> None:
        self._connection = connection
        self._pid = pid
        self._pidfd = pidfd
        self._relay = relay
        self._code: int | None = None
        """The exit code that the server itself has reported."""
        self._status: int | None = None
        """The server's exit code, or -N after signal N, from its parent, the template process."""
        self._again: list[str] = []
        """A variable, its value, and words to add to the command, with which a cold start follows, if any."""
        self._forwarded: set[int] = set()

    def wait(self, wakeup_fd: int) -> int:
        """Waits for the server's end. Returns its exit code, or -N after signal N."""
        poll = select.poll()
        for fd in (wakeup_fd, self._pidfd, self._connection.fileno()):
            poll.register(fd, select.POLLIN)
        if self._relay is not None:
            poll.register(self._relay.fileno(), select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if wakeup_fd in ready:
                numbers = os.read(wakeup_fd, 256)
                for index, number in enumerate(numbers):
                    if number not in _STOPS or signal.SIGCONT not in numbers[index:]:  # SIGCONT cancels a stop
                        self._forward(number)
            if self._connection.fileno() in ready and not self._read_message():
                poll.unregister(self._connection.fileno())
            if self._relay is not None:
                self._relay.forward(self._pid)
            if self._pidfd in ready:
                return self._ended(wakeup_fd)

    def _ended(self, wakeup_fd: int) -> int:
        self._connection.settimeout(_STATUS_S)
        while self._status is None and self._read_message():
            pass
        if self._again:
            self._end_if_signalled(wakeup_fd)
            name, value, *added = self._again
            os.environ.update({name: value, "VCLI_STANDBY": "off"})
            os.execv(sys.executable, [*sys.orig_argv, *added])
        if self._status is not None:
            return self._status
        return _KILLED if self._code is None else self._code

    def _end_if_signalled(self, wakeup_fd: int) -> None:
        """Ends this process if signals came before the server's end and the server did not act on them.

        From now on, signals have their default actions, also in a program that this process executes next.
        """
        for number in _HANDLED:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        with suppress(BlockingIOError):
            self._forwarded.update(os.read(wakeup_fd, 256))
        for received in self._forwarded.intersection(_TO_MAIN):
            os.kill(os.getpid(), received)

    def _read_message(self) -> bool:
        """Reads a message. Returns False if no further message can follow."""
        try:
            sections, fds = messages.receive(self._connection)
        except (OSError, messages.MessageError):
            return False
        messages.close_all(fds)
        match sections:
            case [[b"exit", code]]:
                self._code = int(code)
            case [[messages.ENDED, code]]:
                self._status = int(code)
            case [[b"again", _, _, *_] as texts]:
                self._again = [os.fsdecode(text) for text in texts[1:]]
        return True

    def _forward(self, number: int) -> None:
        if number in _STOPS:
            self._signal_group(signal.SIGSTOP)
            handler = signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)  # returns when this process is continued, or at once without job control
            signal.signal(number, handler)
            self._signal_group(signal.SIGCONT)
        elif number == signal.SIGCONT:
            self._signal_group(signal.SIGCONT)
        elif number in _TO_MAIN:
            self._forwarded.add(number)
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _signal_group(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._pid, number)
