"""Ports for servers that a test starts as processes of their own, and that cannot choose one themselves."""

import random
import socket
from pathlib import Path

import pytest

from tests.machine_lock import worker_number

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_WIDTH = 10_000
_SHARES = 8


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")


def free_port() -> int:
    """A port that nobody has, below those that the kernel hands out to clients and to servers on port 0 meanwhile.

    A client that asks again and again before the server listens cannot get connected to itself there either. Tests of
    other workers take none of these: each has its share.
    """
    first = int(_RANGE.read_text().split()[0])
    while True:
        port = random.randrange(max(1024, first - _WIDTH) + worker_number() % _SHARES, first, _SHARES)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
