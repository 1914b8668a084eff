"""A client's TLS connection, as the responder's loop takes it: like a socket that does not block.

Imported in the responder's process alone, and only where the server has a certificate.
"""

import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING

from server.config import ServerConfig
from server.security.tls import create_tls_context

if TYPE_CHECKING:
    from collections.abc import Callable


def open_tls(config: ServerConfig) -> "Callable[[socket.socket], TlsChannel]":
    """Makes TLS of accepted sockets.

    Raises:
        TlsError: the operator's files make none.
    """
    context = create_tls_context(config)
    return lambda client: TlsChannel(client, context)


class TlsChannel:
    """Shakes hands with the first reads. What TLS waits for is a BlockingIOError, what it does not like an OSError."""

    def __init__(self, client: socket.socket, context: ssl.SSLContext) -> None:
        client.setblocking(False)
        self._tls = context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        self._has_shaken_hands = False

    def fileno(self) -> int:
        """For selectors."""
        return self._tls.fileno()

    def setblocking(self, is_blocking: bool) -> None:
        """As a socket's."""
        self._tls.setblocking(is_blocking)

    def recv(self, num_bytes: int) -> bytes:
        """As a socket's; `num_bytes` must be a TLS record's 16 KiB or more, so that nothing is left without notice."""
        try:
            if not self._has_shaken_hands:
                self._tls.do_handshake()
                self._has_shaken_hands = True
            return self._tls.recv(num_bytes)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as err:
            raise BlockingIOError from err

    def send(self, data: bytes) -> int:
        """As a socket's."""
        try:
            return self._tls.send(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as err:
            raise BlockingIOError from err

    def shutdown(self, how: int) -> None:
        """Says in TLS that nothing more comes, and does what a socket's does; from here on it reads as a plain one."""
        with suppress(OSError):  # the other side has not said goodbye yet, and need not
            self._tls.unwrap()
        self._tls.shutdown(how)

    def close(self) -> None:
        """As a socket's."""
        self._tls.close()
