"""A client's TLS connection with the interface of a non-blocking socket.

This module is imported only in the responder's process, and only if the server has a certificate.
"""

import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING

from base.security.tls import create_tls_context
from base.server_settings import TlsConfig

if TYPE_CHECKING:
    from collections.abc import Callable


def open_tls(config: TlsConfig) -> "Callable[[socket.socket], TlsChannel]":
    """Returns a function that wraps accepted sockets in TLS.

    Raises:
        TlsError: the server's certificate files cannot be used.
    """
    context = create_tls_context(config)
    return lambda client: TlsChannel(client, context)


class TlsChannel:
    """A TLS connection, whose first reads make the handshake.

    BlockingIOError means that TLS needs more data. Any other OSError means a failure.
    """

    def __init__(self, client: socket.socket, context: ssl.SSLContext) -> None:
        client.setblocking(False)
        self._tls = context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        self._is_handshake_done = False

    def fileno(self) -> int:
        return self._tls.fileno()

    def setblocking(self, is_blocking: bool) -> None:
        self._tls.setblocking(is_blocking)

    def recv(self, num_bytes: int) -> bytes:
        """Receives like a socket. `num_bytes` must be 16 KiB or more: selectors do not see decrypted data."""
        try:
            if not self._is_handshake_done:
                self._tls.do_handshake()
                self._is_handshake_done = True
            return self._tls.recv(num_bytes)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as err:
            raise BlockingIOError from err

    def send(self, data: bytes) -> int:
        """Encrypts and sends a part of the data. Returns the length of this part."""
        try:
            return self._tls.send(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as err:
            raise BlockingIOError from err

    def shutdown(self, how: int) -> None:
        """Sends close_notify, then shuts the socket down. Later reads are plain, without TLS."""
        with suppress(OSError):  # the client has not sent its close_notify yet, and need not
            self._tls.unwrap()
        self._tls.shutdown(how)

    def close(self) -> None:
        """Closes the socket, without a close_notify."""
        self._tls.close()
