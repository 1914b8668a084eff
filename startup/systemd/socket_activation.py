"""Takes a listening socket that the service manager passed to this process: sd_listen_fds(3)."""

import logging
import os
import socket
from contextlib import suppress
from typing import Final

from envs.registry import env
from startup.errors import StartupError

logger = logging.getLogger(__name__)

_FIRST_FD: Final = 3


def take_socket() -> socket.socket | None:
    """The first socket that was passed to this process; None if there is none.

    Removes the variables and makes the descriptors non-inheritable, so that no child process takes the
    socket.

    Raises:
        StartupError: the first descriptor is not a socket that listens for connections.
    """
    if env.LISTEN_PID.get() != os.getpid():
        return None
    num_fds = env.LISTEN_FDS.get() or 0
    for variable in (env.LISTEN_PID, env.LISTEN_FDS, env.LISTEN_FDNAMES):
        os.environ.pop(variable.name, None)
    if num_fds == 0:
        return None
    if num_fds > 1:
        logger.warning("%d sockets were passed: the first is used", num_fds)
    for fd in range(_FIRST_FD, _FIRST_FD + num_fds):
        with suppress(OSError):  # an invalid first descriptor is reported by `_open`
            os.set_inheritable(fd, False)
    return _open(_FIRST_FD)


def _open(fd: int) -> socket.socket:
    try:
        listener = socket.socket(fileno=fd)
        is_listening = listener.type == socket.SOCK_STREAM and listener.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        )
    except OSError as err:
        raise StartupError(f"LISTEN_FDS: descriptor {fd} is no socket ({(err.strerror or '').lower()})") from err
    if not is_listening:
        raise StartupError(f"LISTEN_FDS: descriptor {fd} does not listen: use ListenStream= with Accept=no")
    return listener
