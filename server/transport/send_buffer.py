"""Bounds the kernel's send buffer, which otherwise holds megabytes for each client that does not read."""

import socket


def bound_unsent_bytes(listener: socket.socket, num_bytes: int) -> None:
    """Applies to the connections that the listener accepts; bytes sent but not acknowledged do not count."""
    if listener.family in (socket.AF_INET, socket.AF_INET6):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, num_bytes)
