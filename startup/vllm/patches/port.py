"""Gives the launcher's listening socket to vLLM.

vLLM binds its socket itself, in several places, and passes the socket to its API servers. So this module
replaces `socket.bind`. If vLLM binds a socket to the listener's address, the socket becomes a duplicate of
the listener. The hook `port` (`startup.vllm.serving.serving_events`) checks that vLLM binds in this way.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def reuse_listener(listener: socket.socket) -> Iterator[None]:
    """Inside this context, a socket that is bound to the listener's address duplicates the listener."""
    address = listener.getsockname()
    original_bind = socket.socket.bind

    def bind(self: socket.socket, wanted: Any) -> None:
        is_same_kind = (self.family, self.type) == (listener.family, listener.type)
        if is_same_kind and _is_at(wanted, address, self.family):
            os.dup2(listener.fileno(), self.fileno(), inheritable=False)
        else:
            original_bind(self, wanted)

    socket.socket.bind = bind  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        socket.socket.bind = original_bind  # type: ignore[method-assign]


def _is_at(wanted: Any, address: Any, family: int) -> bool:
    if family == socket.AF_UNIX:
        return bool(wanted == address)
    any_host = "::" if family == socket.AF_INET6 else "0.0.0.0"
    host, port = wanted[:2]
    return bool(port == address[1] and address[0] in (host or any_host, *_addresses(host, family)))


def _addresses(host: str, family: int) -> list[str]:
    """The first address of a host name. Empty for an unknown name, which the original `bind` rejects."""
    try:
        found = socket.getaddrinfo(host or None, None, family, socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(address[0]) for *_, address in found[:1]]
