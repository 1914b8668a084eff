"""Tells the service manager (systemd, or what speaks its protocol) how the start and the end go: sd_notify(3)."""

import logging
import os
import socket
from importlib import import_module
from typing import TYPE_CHECKING, Final

from envs.registry import env

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger(__name__)

_TIMEOUT_S: Final = 5.0
"""How long a manager that is busy is waited for where a message must arrive."""
_US: Final = 1_000_000


class ServiceManager:
    """Datagrams to the socket in NOTIFY_SOCKET; where the variable is not set, nothing is done.

    Lives in the API process, on its main thread. An address that begins with `@` is an abstract one.
    """

    def __init__(self, address: str | None, watchdog_s: float | None = None) -> None:
        self._address = address
        self._watchdog_s = watchdog_s
        self._socket: socket.socket | None = None
        self._status = ""
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def from_environment(cls) -> "ServiceManager":
        """The manager that started this process, if one did."""
        address = env.NOTIFY_SOCKET.get()
        if address is not None and address[:1] not in ("/", "@"):
            logger.warning(
                "NOTIFY_SOCKET must be a path or begin with @, got %r: the service manager is not told", address
            )
            address = None
        is_watched = env.WATCHDOG_PID.get() in (None, os.getpid())
        watchdog_us = env.WATCHDOG_USEC.get() if is_watched else None
        return cls(address, watchdog_us / _US if watchdog_us else None)

    def notify_status(self, status: str) -> None:
        """What `systemctl status` shows; may get lost where the manager is busy."""
        if self._address is not None and status != self._status:
            self._status = status
            self._send(f"STATUS={_on_one_line(status)}", timeout_s=0)

    def notify_ready(self, status: str) -> None:
        """The server takes requests. On the event loop: from now on, it is the loop's life that the watchdog sees.

        On a thread without a loop there is nobody whose life it could see, and it is switched off.
        """
        if self._address is None:
            return
        self._status = status
        message = f"READY=1\nSTATUS={_on_one_line(status)}"
        loop = None if self._watchdog_s is None else _running_loop()
        if self._watchdog_s is not None and loop is None:
            message += "\nWATCHDOG_USEC=0"
        self._send(message, timeout_s=_TIMEOUT_S)
        if self._watchdog_s is not None and loop is not None:
            self._beat(loop, self._watchdog_s / 2)

    def notify_stopping(self, status: str) -> None:
        """No more requests are taken."""
        if self._address is not None:
            self._status = status
            self._send(f"STOPPING=1\nSTATUS={_on_one_line(status)}", timeout_s=_TIMEOUT_S)

    def notify_failure(self, reason: str) -> None:
        """The start has failed; the process ends."""
        self.notify_status(f"failed: {reason}")

    def close(self) -> None:
        """The last message has been sent."""
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _beat(self, loop: "asyncio.AbstractEventLoop", interval_s: float) -> None:
        self._send("WATCHDOG=1", timeout_s=0)
        self._timer = loop.call_later(interval_s, self._beat, loop, interval_s)

    def _send(self, message: str, *, timeout_s: float) -> None:
        """A manager that cannot be told is no reason to end."""
        assert self._address is not None
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.settimeout(timeout_s)
            self._socket.sendto(message.encode(errors="replace"), _place(self._address))
        except OSError as err:
            logger.warning("the service manager at %s was not told %s: %s", self._address, message.split("\n")[0], err)


def _running_loop() -> "asyncio.AbstractEventLoop | None":
    """This thread's."""
    asyncio = import_module("asyncio")  # the server has imported it; the start does not wait for it
    try:
        return asyncio.get_running_loop()  # type: ignore[no-any-return]
    except RuntimeError:
        return None


def _place(address: str) -> str:
    return f"\0{address[1:]}" if address.startswith("@") else address


def _on_one_line(text: str) -> str:
    return " ".join(text.split())
