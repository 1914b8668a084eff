"""Free ports for servers in other processes that cannot use port 0."""

import socket

import pytest

from tests.machine_lock import worker_number
from vllm_cli.bench.target import find_free_port, list_server_ports

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
    """A port that no process uses and the kernel assigns to none; each test worker takes other ones."""
    return find_free_port(list_server_ports()[worker_number() % _SHARES :: _SHARES])
