"""A child process that runs a server or another program, and ends whenever its parent ends."""

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NoReturn, Self

from base.wording import signal_name
from envs import environment
from envs.registry import env
from startup.processes import death_pipe

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
)
"""The router's variables that neither its standbys nor its models' processes inherit."""
_RESET: Final = (signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that Python ignores. An executed program gets their default actions back, as from a shell."""
_CANNOT_EXECUTE: Final = 127
"""The exit code of a process that could not execute its program. Shells use the same code."""


class ChildProcess:
    """A process with a process group of its own, so that Ctrl-C in the terminal reaches only its parent."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    @classmethod
    def fork(cls, become: Callable[[], NoReturn]) -> Self:
        """Starts a process. In it, `become` executes a program. Called on the main thread. Raises OSError."""
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
        with suppress(OSError):  # the child may have executed its program already
            os.setpgid(pid, pid)
        return cls(pid)

    def signal(self, number: int) -> None:
        """Sends a signal to this process, but not to its descendants."""
        with suppress(ProcessLookupError, PermissionError):  # for example of `sudo`
            os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """Sends a signal to the process, and to its descendants in its process group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """Kills the process and its process group, and waits until the process has ended."""
        self.signal_group(signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def poll(self) -> int | None:
        """The exit code of the process, or -N after signal N. None while the process runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None


_FILES_LIMIT: Final = resource.getrlimit(resource.RLIMIT_NOFILE)
"""The limit of open files with which this process was started. New processes get this limit back."""


def inherited_environment() -> dict[str, str]:
    """The environment of this process without the router's own variables."""
    own = {variable.name for variable in _OWN}
    return {name: value for name, value in environment.snapshot().items() if name not in own}


def _restore_signals(mask: set[int]) -> None:
    """Gives the new process the signal handling of a newly executed program.

    Signals are blocked until then, because the new process shares the wake-up descriptor of its parent's
    event loop. If a handler ran in the new process, the parent would take the signal for one of its own.
    """
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if number in _RESET or callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def execute_serve(arguments: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Executes `serve` of this program, with this process's interpreter and interpreter options."""
    num_arguments = len(sys.argv) - 1
    program = sys.orig_argv[: len(sys.orig_argv) - num_arguments]
    os.execve(sys.executable, [*program, "serve", *arguments], environment)


def describe_end(code: int) -> str:
    """Describes how a process has ended."""
    return f"The server ended with exit code {code}" if code >= 0 else f"The server was ended by {signal_name(-code)}"


class ProcessSet:
    """A set of processes. Used on the event loop. Signals go through pidfds, never to a reused process id."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._fds: dict[int, int] = {}
        """Process id -> pidfd, for each added process that has not ended."""
        self._known: set[int] = set()
        """The ids of all processes that were ever added."""
        self._change = asyncio.Event()

    def add(self, pids: Iterable[int]) -> None:
        """Adds processes. Ignores processes that have ended already."""
        for pid in pids:
            if pid not in self._known:
                with suppress(OSError):
                    self._fds[pid] = os.pidfd_open(pid)
                    self._known.add(pid)
                    self._loop.add_reader(self._fds[pid], self._end, pid)

    def is_running(self, pid: int) -> bool:
        """Whether the process was added and has not ended."""
        return pid in self._fds

    async def wait_all(self, timeout_s: float) -> bool:
        """Waits until all processes have ended. Returns False if some still run after `timeout_s`."""
        await self._wait(lambda: not self._fds, timeout_s)
        return not self._fds

    async def wait(self, pid: int, timeout_s: float | None) -> None:
        """Waits at most `timeout_s` until this process has ended."""
        await self._wait(lambda: pid not in self._fds, timeout_s)

    def signal(self, number: int) -> None:
        """Sends a signal to each added process that still runs."""
        for fd in self._fds.values():
            with suppress(OSError):
                signal.pidfd_send_signal(fd, number)

    def close(self) -> None:
        for pid in list(self._fds):
            self._end(pid)

    async def _wait(self, is_over: Callable[[], bool], timeout_s: float | None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not is_over():
                    self._change.clear()
                    await self._change.wait()

    def _end(self, pid: int) -> None:
        fd = self._fds.pop(pid)
        self._loop.remove_reader(fd)
        os.close(fd)
        self._change.set()
