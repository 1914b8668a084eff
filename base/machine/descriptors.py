"""Open files by their numbers: a forked process gives its own high ones, so that another process's fit."""

import fcntl
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_LOWEST: Final = 500
_LOW_FDS: Final = 250
"""Lower numbers belong to other processes' files."""


def is_open(fd: int) -> bool:
    """Whether this process has an open file of this number."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def move_up(fd: int) -> int:
    """Gives an open file a high number, which is returned; the old number is closed."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = _LOWEST if soft == resource.RLIM_INFINITY else min(_LOWEST, soft // 2)
    moved: int = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)
    os.close(fd)
    return moved


def move_socket_up(connection: socket.socket) -> socket.socket:
    """Gives a socket a high number; returns it as a new object, and closes the given one."""
    return socket.socket(fileno=move_up(connection.detach()))


@contextmanager
def low_numbers_taken() -> Iterator[None]:
    """Files that imports open in the block get high numbers.

    Some stay open: since libffi 3.8, which ctypes loads, that library's own.
    """
    null = os.open(os.devnull, os.O_RDONLY)
    num_taken = min(_LOW_FDS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
    taken = [null, *(os.dup(null) for _ in range(num_taken))]
    try:
        yield
    finally:
        for fd in taken:
            os.close(fd)
