"""Moves open files of a forked process to high descriptors, because another process will use low ones."""

import fcntl
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_LOWEST: Final = 500
_LOW_FDS: Final = 250
"""Descriptors below this number stay free for the files of another process."""


def is_open(fd: int) -> bool:
    """Whether this descriptor is open in this process."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def move_up(fd: int) -> int:
    """Moves an open file to a high descriptor, which is returned. Closes the old descriptor."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = _LOWEST if soft == resource.RLIM_INFINITY else min(_LOWEST, soft // 2)
    moved: int = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)
    os.close(fd)
    return moved


def move_socket_up(connection: socket.socket) -> socket.socket:
    """Moves a socket to a high descriptor. Returns a new socket object, and closes the given object."""
    return socket.socket(fileno=move_up(connection.detach()))


@contextmanager
def low_numbers_taken() -> Iterator[None]:
    """Makes files that are opened by imports in the block get high descriptors.

    Some imports leave a file open, for example ctypes with libffi 3.8 or newer.
    """
    null = os.open(os.devnull, os.O_RDONLY)
    num_taken = min(_LOW_FDS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
    taken = [null, *(os.dup(null) for _ in range(num_taken))]
    try:
        yield
    finally:
        for fd in taken:
            os.close(fd)
