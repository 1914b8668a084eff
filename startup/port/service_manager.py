"""Notifies the service manager (systemd, or one with its protocol) of start and stop.

Also takes a socket that the manager has opened. See sd_notify(3) and sd_listen_fds(3).
"""

import logging
import os
import socket
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Final

from envs.registry import env
from startup.errors import StartupError
from startup.port.notify_relay import socket_address

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    import asyncio

_FIRST_FD: Final = 3
_CAUSE: Final = "socket-activation"
_TIMEOUT_S: Final = 5.0
"""Seconds that an essential message waits for a busy manager."""
_US: Final = 1_000_000


class ServiceManager:
    """Sends messages to the socket in NOTIFY_SOCKET, if this variable is set. Used in the API process."""

    def __init__(self, address: str | None, watchdog_s: float | None = None) -> None:
        self._address = address
        self._watchdog_s = watchdog_s
        self._socket: socket.socket | None = None
        self._status = ""
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def from_environment(cls) -> "ServiceManager":
        """The manager at NOTIFY_SOCKET, with a heartbeat if the manager watches this process."""
        address = env.NOTIFY_SOCKET.get()
        if address is not None and address[:1] not in ("/", "@"):
            logger.warning(
                "NOTIFY_SOCKET must be a path or begin with @, got %r: the service manager is not notified", address
            )
            address = None
        is_watched = address is not None and env.WATCHDOG_PID.get() in (None, os.getpid())
        watchdog_us = env.WATCHDOG_USEC.get() if is_watched else None
        return cls(address, watchdog_us / _US if watchdog_us else None)

    def notify_status(self, status: str) -> None:
        """Sets the text that `systemctl status` shows. The text is dropped if the manager is busy."""
        if status != self._status:
            self._status = status
            self._send(f"STATUS={_on_one_line(status)}", timeout_s=0)

    def notify_ready(self, status: str) -> None:
        """Reports that the server accepts requests. Starts the watchdog's heartbeat on the event loop.

        On a thread without an event loop, no heartbeat is sent, and the watchdog is switched off.
        """
        self._status = status
        message = f"READY=1\nSTATUS={_on_one_line(status)}"
        loop = None if self._watchdog_s is None else _running_loop()
        if self._watchdog_s is not None and loop is None:
            message += "\nWATCHDOG_USEC=0"
        self._send(message, timeout_s=_TIMEOUT_S)
        if self._watchdog_s is not None and loop is not None:
            self._send_heartbeat(loop, self._watchdog_s / 2)

    def notify_stopping(self, status: str) -> None:
        """Reports that the server rejects new requests."""
        self._status = status
        self._send(f"STOPPING=1\nSTATUS={_on_one_line(status)}", timeout_s=_TIMEOUT_S)

    def notify_failure(self, reason: str) -> None:
        """Reports that the start has failed and the process exits."""
        self.notify_status(f"failed: {reason}")

    def close(self) -> None:
        """Ends the heartbeat. No message is sent afterwards."""
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send_heartbeat(self, loop: "asyncio.AbstractEventLoop", interval_s: float) -> None:
        self._send("WATCHDOG=1", timeout_s=0)
        self._timer = loop.call_later(interval_s, self._send_heartbeat, loop, interval_s)

    def _send(self, message: str, *, timeout_s: float) -> None:
        """Sends a message, if there is a manager. If this fails, logs a warning, and the server continues."""
        if self._address is None:
            return
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.settimeout(timeout_s)
            self._socket.sendto(message.encode(errors="replace"), socket_address(self._address))
        except OSError as err:
            logger.warning(
                "the service manager at %s was not notified of %s: %s", self._address, message.split("\n")[0], err
            )


def _running_loop() -> "asyncio.AbstractEventLoop | None":
    asyncio = import_module("asyncio")  # the server has imported it by now; at the top it would delay the start
    try:
        return asyncio.get_running_loop()  # type: ignore[no-any-return]
    except RuntimeError:
        return None


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


def take_socket() -> socket.socket | None:
    """The first socket that the service manager passed to this process. None if it passed no socket.

    Removes the variables and makes the descriptors non-inheritable, so that no child takes the socket.

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
        with suppress(OSError):  # `_open` reports an invalid first descriptor
            os.set_inheritable(fd, False)
    return _open(_FIRST_FD)


def _open(fd: int) -> socket.socket:
    try:
        listener = socket.socket(fileno=fd)
        is_listening = listener.type == socket.SOCK_STREAM and listener.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        )
    except OSError as err:
        message = f"LISTEN_FDS: descriptor {fd} is no socket ({(err.strerror or '').lower()})"
        raise StartupError(message, cause=_CAUSE) from err
    if not is_listening:
        message = f"LISTEN_FDS: descriptor {fd} does not listen. Use ListenStream= with Accept=no"
        raise StartupError(message, cause=_CAUSE)
    return listener
