"""Bounds what the kernel keeps for a client that does not read: megabytes for each of them, unless it is told."""

import socket


def bound_unsent_bytes(listener: socket.socket, num_bytes: int) -> None:
    """For the connections that the listener accepts; what has left and was not acknowledged does not count."""
    if listener.family in (socket.AF_INET, socket.AF_INET6):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, num_bytes)
