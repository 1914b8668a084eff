"""A client's connection as the responder's loop uses it: a socket, or TLS on a socket."""

import socket
from collections.abc import Callable
from typing import Protocol


class Channel(Protocol):
    """A non-blocking connection; TLS is implemented by `startup.probes.tls_channel`."""

    def fileno(self) -> int: ...
    def setblocking(self, is_blocking: bool, /) -> None: ...
    def recv(self, num_bytes: int, /) -> bytes: ...
    def send(self, data: bytes, /) -> int: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...


OpenChannel = Callable[[socket.socket], Channel]
"""Makes a channel of an accepted socket; an OSError rejects the client."""


def open_plain() -> OpenChannel:
    """Channels without TLS: the sockets themselves."""
    return lambda client: client
