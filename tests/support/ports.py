"""Free ports for servers in other processes that cannot use port 0."""

import os
import random
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from base.machine.server_ports import list_server_ports

_SHARES = 8
_ENOUGH = 100 * _SHARES
_left: list[int] = []
"""The ports of this pytest worker that no call has returned yet."""


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")


def free_port() -> int:
    """A port that no process uses. The kernel assigns it to nobody, and no other call or worker gets it."""
    while True:
        if not _left:
            worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
            share = _server_ports()[worker % _SHARES :: _SHARES] or (0,)
            _left.extend(random.sample(share, len(share)))
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", _left.pop()))
            return probe.getsockname()[1]


def _server_ports() -> Sequence[int]:
    """The ports above those of clients, if there are enough. Otherwise the ports of `list_server_ports`.

    Few processes have such high ids, so `vllm-cli stop` rarely finds a process id that equals a port.
    """
    with suppress(OSError):
        most = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[1])
        if len(above := range(most + 1, 1 << 16)) >= _ENOUGH:
            return above
    return list_server_ports()
