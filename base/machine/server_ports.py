"""Finds free ports for servers in other processes, which cannot use port 0."""

import contextlib
import random
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_CLIENT_PORTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_PORT: Final = 10_000


def find_free_port(ports: Sequence[int]) -> int:
    """One of these ports that no process uses."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", random.choice(ports)))
            port: int = probe.getsockname()[1]
            return port


def list_server_ports() -> Sequence[int]:
    """Ports below the range from which the kernel picks ports. Only port 0 if this range is unknown.

    The kernel does not assign such a port to another process before the server listens. For the same reason,
    a client that polls this port cannot connect to itself.
    """
    with contextlib.suppress(OSError, ValueError):
        return range(_FIRST_PORT, int(_CLIENT_PORTS.read_text().split()[0])) or (0,)
    return (0,)
