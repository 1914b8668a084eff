"""Relays a forked server's messages to the service manager, from the process that the manager has started.

A manager accepts only messages of its unit's main process (systemd.service(5), NotifyAccess=). This module
imports little, because a warm start waits for its import.
"""

import socket
import struct
from contextlib import suppress

_CREDENTIALS_BYTES = struct.calcsize("3i")
_MAX_BYTES = 1 << 16
_URGENT = (b"READY=1", b"STOPPING=1")
_URGENT_TIMEOUT_S = 5.0
"""Seconds that an essential message waits for a busy manager. Any other message is dropped instead."""


class NotifyRelay:
    """The front process's socket for the server's messages. The manager has started the front process.

    Used on the main thread.
    """

    def __init__(self, manager: str) -> None:
        """Raises OSError if no process receives messages at `manager`, the address in NOTIFY_SOCKET."""
        self._manager = socket_address(manager)
        self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
                probe.connect(self._manager)
            self._receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._receiver.bind("")  # the kernel chooses an abstract address (unix(7), autobind)
        except OSError:
            self.close()
            raise

    @property
    def address(self) -> str:
        """The value of NOTIFY_SOCKET for the server."""
        name: bytes = self._receiver.getsockname()
        return f"@{name[1:].decode()}"

    def fileno(self) -> int:
        """The socket's descriptor, which is readable when there are messages."""
        return self._receiver.fileno()

    def forward(self, server_pid: int) -> None:
        """Forwards all messages that the server has sent. Drops messages of other processes."""
        while True:
            try:
                message, ancillary, *_ = self._receiver.recvmsg(
                    _MAX_BYTES, socket.CMSG_SPACE(_CREDENTIALS_BYTES), socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            credentials = (data for _, kind, data in ancillary if kind == socket.SCM_CREDENTIALS)
            if any(struct.unpack_from("3i", data)[0] == server_pid for data in credentials):
                self._send(message)

    def close(self) -> None:
        """Closes the relay. No message is forwarded afterwards."""
        self._sender.close()
        self._receiver.close()

    def _send(self, message: bytes) -> None:
        self._sender.settimeout(_URGENT_TIMEOUT_S if any(word in message for word in _URGENT) else 0)
        with suppress(OSError):  # the manager is busy or has ended
            self._sender.sendto(message, self._manager)


def socket_address(manager: str) -> str:
    """Converts an address in NOTIFY_SOCKET to the kernel's form. A leading `@` marks an abstract address."""
    return f"\0{manager[1:]}" if manager.startswith("@") else manager
