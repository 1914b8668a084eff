"""Free ports for servers in other processes that cannot use port 0."""

import os
import socket

import pytest

from vllm_cli.server_ports import find_free_port, list_server_ports

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
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return find_free_port(list_server_ports()[worker % _SHARES :: _SHARES])
