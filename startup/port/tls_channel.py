"""A client's TLS connection that behaves like a non-blocking socket.

This module is imported only in the responder's process, and only if the server has a certificate.
"""

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from base.security.tls import create_tls_context
from base.server_settings import TlsConfig


def open_tls(config: TlsConfig) -> Callable[[socket.socket], socket.socket]:
    """Returns a function that wraps accepted sockets, which must not block, in TLS.

    Raises:
        TlsError: the server's certificate files cannot be used.
    """
    context = create_tls_context(config)
    context.sslsocket_class = _TlsChannel
    return lambda client: context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)


class _TlsChannel(ssl.SSLSocket):
    """A TLS connection, whose first reads make the handshake.

    BlockingIOError means that TLS needs more data. Any other OSError means a failure.
    """

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Receives like a socket. `buflen` must be 16 KiB or more: selectors do not see decrypted data."""
        try:
            return super().recv(buflen, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as err:
            raise BlockingIOError from err

    def send(self, data: Any, flags: int = 0) -> int:
        """Encrypts and sends a part of the data. Returns the length of this part."""
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as err:
            raise BlockingIOError from err

    def shutdown(self, how: int) -> None:
        """Sends close_notify, then shuts the socket down. Later reads are plain, without TLS."""
        with suppress(OSError):  # the client has not sent its close_notify yet, and need not
            self.unwrap()
        super().shutdown(how)
