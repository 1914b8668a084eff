"""Binds the server's socket and listens, before anything slow happens."""

import errno
import os
import socket
from pathlib import Path
from typing import Final

from startup.errors import PortInUseError, StartupError

BACKLOG = 2048
_CAUSES: Final = {
    errno.EACCES: "port-not-permitted",
    errno.EADDRNOTAVAIL: "address-not-local",
}


def listen(*, host: str | None, port: int, uds: str | None, when_ready: bool = False) -> socket.socket:
    """Returns a socket that listens on `uds`, or on `host` and `port`.

    The socket listens at once, so that a second server on the same port fails. (With SO_REUSEADDR, two
    sockets may be bound to one port as long as neither socket listens, see socket(7).) With `when_ready`, the
    port is only bound, and refuses connections. A second server then fails only when it begins to listen.

    Raises:
        PortInUseError: another process listens on this address.
        StartupError: the address cannot be used.
    """
    if uds is not None:
        return _listen_unix(Path(uds))
    family = socket.AF_INET6 if host and ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host or "0.0.0.0", port))
        if not when_ready:
            listener.listen(BACKLOG)
    except (OSError, OverflowError) as err:
        listener.close()
        raise _explain(err, f"{host or '0.0.0.0'}:{port}", "choose another --port") from err
    return listener


def is_listening(listener: socket.socket) -> bool:
    """Whether the socket accepts connections."""
    return bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def describe(listener: socket.socket, *, is_tls: bool = False) -> str:
    """The address as a client writes it: a URL, or `unix:` and the path."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{os.path.abspath(listener.getsockname())}"  # noqa: PTH100 - links stay
    return describe_port(*listener.getsockname()[:2], is_tls=is_tls)


def describe_port(host: str, port: int, *, is_tls: bool) -> str:
    """The URL of a port that need not be open yet."""
    scheme = "https" if is_tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _listen_unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket() and not is_listened_on(path):
            path.unlink(missing_ok=True)  # another process may remove it at this moment, too
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except OSError as err:
        listener.close()
        raise _explain(err, str(path), "choose another --uds") from err
    return listener


def is_listened_on(path: Path) -> bool:
    """Whether a process listens on the UNIX socket, even if its queue is full (EAGAIN)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(str(path)) in (0, errno.EAGAIN)


def _explain(err: OSError | OverflowError, address: str, fix: str) -> StartupError:
    if isinstance(err, socket.gaierror):
        return StartupError(f"cannot listen on {address}: the host name is unknown", cause="host-unreachable")
    reason = (getattr(err, "strerror", None) or str(err)).lower().removesuffix(".")
    if getattr(err, "errno", None) == errno.EADDRINUSE:
        return PortInUseError(f"{address} is in use by another process: stop it or {fix}")
    return StartupError(f"cannot listen on {address}: {reason}", cause=_CAUSES.get(getattr(err, "errno", 0)))
