"""A child process, a server or another program, that ends with its parent, however the parent ends."""

import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NoReturn, Self

from base.wording import signal_name
from envs import foreign
from envs.registry import env
from startup.ground.processes import death_pipe

_OWN: Final = (
    env.NOTIFY_SOCKET,
    env.WATCHDOG_USEC,
    env.WATCHDOG_PID,
    env.LISTEN_PID,
    env.LISTEN_FDS,
    env.LISTEN_FDNAMES,
    env.VLLM_API_KEY,
    env.VCLI_IDLE_STOP,
    env.VCLI_IDLE_SLEEP,
    env.VCLI_RESTART,
    env.VCLI_MODELS,
)
"""Variables of the router that its standbys and its models' processes do not get."""
_RESET: Final = (signal.SIGPIPE, signal.SIGXFSZ)
"""Python ignores them; a program that is executed gets their default actions, as from a shell."""
_CANNOT_EXECUTE: Final = 127
"""The exit code that shells use."""


class ChildProcess:
    """A process that leads its own group, so that Ctrl-C reaches it only through its parent."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    @classmethod
    def fork(cls, become: Callable[[], NoReturn]) -> Self:
        """Starts a process that becomes a program; to be called on the main thread.

        Args:
            become: called in the new process; executes a program.

        Raises:
            OSError: no process can be started.
        """
        parent_pid = os.getpid()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                try:
                    os.setpgid(0, 0)
                    death_pipe.follow_parent(parent_pid)
                    resource.setrlimit(resource.RLIMIT_NOFILE, _FILES_LIMIT)
                    _restore_signals(mask)
                    become()
                finally:
                    os._exit(_CANNOT_EXECUTE)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        with suppress(OSError):  # it may have executed its program already
            os.setpgid(pid, pid)
        return cls(pid)

    def signal(self, number: int) -> None:
        """Sends a signal to the process itself."""
        with suppress(ProcessLookupError, PermissionError):  # of `sudo`, say
            os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """Sends a signal to the process and to its descendants in its group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """Ends the process and its group at once, and waits for its end."""
        self.signal_group(signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def poll(self) -> int | None:
        """The exit code of the process, or -N after signal N; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None


_FILES_LIMIT: Final = resource.getrlimit(resource.RLIMIT_NOFILE)
"""The limit with which this process was started; it raises its own later."""


def inherited_environment() -> dict[str, str]:
    """This process's environment without the router's own variables."""
    own = {variable.name for variable in _OWN}
    return {name: value for name, value in foreign.snapshot().items() if name not in own}


def _restore_signals(mask: set[int]) -> None:
    """Gives a new process the signal handling of a program that was just executed.

    Until then its signals are blocked. This process shares the descriptors of its parent's event loop: a
    handler that runs here would make the parent believe that it was signalled itself.
    """
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if number in _RESET or callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def execute_serve(words: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Becomes `serve` of this program, called as this process was."""
    program = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv[1:])]
    os.execve(sys.executable, [*program, "serve", *words], environment)


def describe_end(code: int) -> str:
    """The end of a process as text."""
    return f"The server ended with exit code {code}" if code >= 0 else f"The server was ended by {signal_name(-code)}"
