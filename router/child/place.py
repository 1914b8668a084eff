"""Sockets and environment of the models' processes, and the end of these processes after the router.

When the router ends, the kernel ends the servers and commands that the router has started. A user's command
may have started further processes, which inherit the variable VCLI_ROUTER. The router finds these processes
by the variable. If the router was killed, a guard process finds and ends them.
"""

import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn

from base.machine.command_line import replace_command_line
from base.machine.processes import marked_pids
from envs.registry import env
from router.child.child_process import inherited_environment
from startup.logs.options import LogOptions
from startup.processes import group_signals

_NUM_SCANS: Final = 50
_BETWEEN_SCANS_S: Final = 0.02
_FIRST_FD: Final = 3
_MOST_FDS: Final = 1024
"""The guard closes descriptors up to this number. A router has fewer open when it starts the guard."""
_TITLE: Final = b"vllm-cli router's guard"


class ChildPlaces:
    """The folder with the sockets of a router's children."""

    def __init__(self, folder: Path, logs: LogOptions) -> None:
        self._folder = folder
        self._base = inherited_environment()
        self._base[env.VCLI_LOG_FORMAT.name] = logs.format
        self._base[env.VLLM_LOGGING_LEVEL.name] = logs.level

    def socket_path(self, number: int) -> str:
        return str(self._folder / f"{number}.sock")

    def environment(self, number: int, variables: Mapping[str, str]) -> dict[str, str]:
        """The environment of a child: the inherited environment, `variables`, and VCLI_ROUTER."""
        return {**self._base, **variables, env.VCLI_ROUTER.name: self.socket_path(number)}


def find_marked(place: str) -> list[int]:
    """The ids of this user's processes whose VCLI_ROUTER is the path `place`, or a path below it."""
    variable = f"{env.VCLI_ROUTER.name}={place}"
    return marked_pids(f"{variable}\0", f"{variable}/")


@contextmanager
def guarded(folder: str) -> Iterator[None]:
    """Runs the guard: a process that ends the marked processes and removes the folder after this process.

    This process must have no other threads, and no sockets that must not leak. The block ends when the guard
    has ended.
    """
    read_fd, life_fd = os.pipe()
    with group_signals.blocked():
        pid = os.fork()
        if pid == 0:  # signals stay blocked here until their handlers are replaced
            try:
                os.close(life_fd)
                _guard(read_fd, folder)
            finally:
                os._exit(1)
    os.close(read_fd)
    try:
        yield
    finally:
        os.close(life_fd)
        os.waitpid(pid, 0)


def _guard(read_fd: int, folder: str) -> NoReturn:
    """Runs in the guard process. Waits until the router's end of the pipe is closed, then does its work."""
    os.setsid()
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    group_signals.ignore()
    os.closerange(_FIRST_FD, read_fd)
    os.closerange(read_fd + 1, _MOST_FDS)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    with suppress(OSError):
        replace_command_line(_TITLE)
    os.read(read_fd, 1)
    for _ in range(_NUM_SCANS):
        if not (pids := find_marked(folder)):
            break
        for pid in pids:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_BETWEEN_SCANS_S)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)
