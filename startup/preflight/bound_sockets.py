"""Finds TCP sockets that are bound to a port without listening, which /proc/net/tcp does not list.

Linux 6.8 and later report them over netlink (sock_diag(7)); older kernels answer with an empty list.
"""

import socket
import struct
from typing import Final

_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST_AND_DUMP: Final = 0x301
_BOUND_INACTIVE: Final = 1 << 13
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBBBI48s")
_MESSAGE: Final = struct.Struct("=4s2s46s16xI")
"""Family and state; local port, in network order; rest of the addresses; timers and owner; inode."""

_TIMEOUT_S: Final = 0.2


def bound_socket_inodes(port: int) -> set[int]:
    """Inodes of sockets bound to the port without listening; empty if the kernel does not report them."""
    inodes: set[int] = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            inodes |= _query(family, port)
        except OSError:
            continue
    return inodes


def _query(family: int, port: int) -> set[int]:
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, _BOUND_INACTIVE, bytes(48))
    header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _REQUEST_AND_DUMP, 1, 0)
    inodes: set[int] = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _SOCK_DIAG) as kernel:
        kernel.settimeout(_TIMEOUT_S)
        kernel.send(header + request)
        while _collect(kernel.recv(1 << 16), port, inodes):
            pass
    return inodes


def _collect(answer: bytes, port: int, inodes: set[int]) -> bool:
    """Adds the inodes of one datagram; returns False for the last datagram."""
    offset = 0
    while offset + _HEADER.size <= len(answer):
        length, kind, *_ = _HEADER.unpack_from(answer, offset)
        if kind != _SOCK_DIAG_BY_FAMILY or length < _HEADER.size:
            return False
        _, port_bytes, _, inode = _MESSAGE.unpack_from(answer, offset + _HEADER.size)
        if int.from_bytes(port_bytes, "big") == port:
            inodes.add(inode)
        offset += (length + 3) & ~3
    return True
