"""The processes of a server, by what they are there for."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Literal

import psutil
from server_process import ServerProcess

from tests.waiting import wait_until

Member = Literal["api", "engine", "forkserver", "resource_tracker", "responder", "prefetch"]


def find_member(server: ServerProcess, member: Member) -> psutil.Process | None:
    """The process as far as it is there."""
    for process in server.family():
        with suppress(psutil.NoSuchProcess):
            if member in _roles(server, process):
                return process
    return None


def wait_member(server: ServerProcess, member: Member) -> psutil.Process:
    """The process, as soon as it is there."""
    found: list[psutil.Process] = []

    def look() -> bool:
        process = find_member(server, member)
        found.extend([process] if process is not None else [])
        return bool(found)

    wait_until(look)
    return found[0]


def _roles(server: ServerProcess, process: psutil.Process) -> Iterator[Member]:
    words = " ".join(process.cmdline())
    is_child = process.ppid() == server.process.pid
    if process.pid == server.process.pid:
        yield "api"
    elif not is_child:
        yield "engine"  # its parent is the forkserver
    elif "resource_tracker import" in words:
        yield "resource_tracker"
    elif "forkserver import" in words:
        yield "forkserver"
    elif "prefetch.worker" in words:
        yield "prefetch"
    elif process.cmdline() == psutil.Process(server.process.pid).cmdline():
        yield "responder"
