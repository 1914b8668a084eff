"""Finds the processes that hold a port or a UNIX socket, with their command lines (proc(5))."""

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from envs.redaction import hide_in_words
from server.machine.cgroups import PROC

_LISTENING_TCP: Final = "0A"
_LISTENING_UNIX: Final = 0x10000
_MAX_CHARACTERS: Final = 120

_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST_AND_DUMP: Final = 0x301
_BOUND_INACTIVE: Final = 1 << 13
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBBBI48s")
_MESSAGE: Final = struct.Struct("=4s2s46s16xI")
"""Family and state; local port, in network order; rest of the addresses; timers and owner; inode."""

_TIMEOUT_S: Final = 0.2


class Holder(NamedTuple):
    """A process with an open socket."""

    pid: int
    command: str
    """Its command line without secrets, shortened to one line."""
    is_listening: bool

    def __str__(self) -> str:
        state = "" if self.is_listening else ", which does not listen there"
        return f"pid {self.pid} ({self.command}){state}"


def tcp_holders(port: int, proc: Path = PROC) -> list[Holder]:
    """Other processes with a socket on this local port."""
    listening: set[int] = set()
    others = bound_socket_inodes(port)
    for name in ("tcp", "tcp6"):
        for line in _table(proc / "net" / name):
            if int(line[1].rpartition(":")[2], 16) == port:
                (listening if line[3] == _LISTENING_TCP else others).add(int(line[9]))
    return _holders(listening, others, proc)


def bound_holders(port: int, proc: Path = PROC) -> list[Holder]:
    """Other processes with a socket that is bound to the port but neither listens nor is connected."""
    return _holders(set(), bound_socket_inodes(port), proc)


def unix_holders(path: Path, proc: Path = PROC) -> list[Holder]:
    """Other processes that have bound the UNIX socket."""
    listening: set[int] = set()
    others: set[int] = set()
    for line in _table(proc / "net" / "unix"):
        if len(line) > 7 and line[7] in (str(path), str(path.absolute())):
            (listening if int(line[3], 16) & _LISTENING_UNIX else others).add(int(line[6]))
    return _holders(listening, others, proc)


def bound_socket_inodes(port: int) -> set[int]:
    """Inodes of TCP sockets that are bound to the port without listening, which /proc/net/tcp does not list.

    Linux 6.8 and later report them over netlink (sock_diag(7)); older kernels answer with an empty list.
    """
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


def _table(path: Path) -> Iterator[list[str]]:
    try:
        lines = path.read_text(errors="replace").splitlines()[1:]
    except OSError:
        return
    yield from (line.split() for line in lines)


def _holders(listening: set[int], others: set[int], proc: Path) -> list[Holder]:
    """One entry per process, listening ones first; inode 0 is a socket without a process."""
    wanted = {f"socket:[{inode}]": inode in listening for inode in (others | listening) - {0}}
    is_listening: dict[int, bool] = {}
    for pid, link in _open_sockets(proc) if wanted else ():
        if link in wanted and pid != os.getpid():
            is_listening[pid] = is_listening.get(pid, False) or wanted[link]
    holders = [Holder(pid, _command(proc / str(pid)), state) for pid, state in is_listening.items()]
    return sorted(holders, key=lambda holder: (not holder.is_listening, holder.pid))


def _open_sockets(proc: Path) -> Iterator[tuple[int, str]]:
    for process in proc.iterdir():
        if not process.name.isdigit():
            continue
        try:
            descriptors = list((process / "fd").iterdir())
        except OSError:
            continue
        for descriptor in descriptors:
            try:
                yield int(process.name), str(descriptor.readlink())
            except OSError:
                continue


def _command(process: Path) -> str:
    try:
        words = (process / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        words = []
    text = " ".join(" ".join(word.split()) for word in hide_in_words(words)) or "command unknown"
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 1]}…"
