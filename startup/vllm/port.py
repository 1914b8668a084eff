"""The port that has listened since the first moment becomes vLLM's.

vLLM binds its socket itself, in several places, and hands it to its API servers. So what is bound to the
port's address in this process becomes the socket that is bound already.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def reuse_listener(listener: socket.socket) -> Iterator[None]:
    """While open, whoever binds the listener's address in this process gets the listener."""
    address = listener.getsockname()
    bind_anew = socket.socket.bind

    def bind(self: socket.socket, wanted: Any) -> None:
        if _is_same(self, listener) and _is_at(wanted, address, self.family):
            os.dup2(listener.fileno(), self.fileno(), inheritable=False)
        else:
            bind_anew(self, wanted)

    socket.socket.bind = bind  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        socket.socket.bind = bind_anew  # type: ignore[method-assign]


def _is_same(one: socket.socket, other: socket.socket) -> bool:
    return one.family == other.family and one.type == other.type


def _is_at(wanted: Any, address: Any, family: int) -> bool:
    if family == socket.AF_UNIX:
        return bool(wanted == address)
    any_host = "::" if family == socket.AF_INET6 else "0.0.0.0"
    host, port = wanted[:2]
    return bool(port == address[1] and address[0] in (host or any_host, *_addresses(host, family)))


def _addresses(host: str, family: int) -> list[str]:
    """Of a host's name; none where it is not known, about which binding it anew will complain."""
    try:
        found = socket.getaddrinfo(host or None, None, family, socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(address[0]) for *_, address in found[:1]]
