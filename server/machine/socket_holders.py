"""Finds the processes that hold a port or a UNIX socket, with their command lines (proc(5))."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from envs.redaction import hide_in_words
from server.machine.cgroups import PROC
from startup.preflight.bound_sockets import bound_socket_inodes

_LISTENING_TCP: Final = "0A"
_LISTENING_UNIX: Final = 0x10000
_MAX_CHARACTERS: Final = 120


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
