"""The processes of a server, by what they are there for."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeVar

import psutil
from server_process import ServerProcess

from tests.waiting import wait_until

Member = Literal["api", "engine", "forkserver", "resource_tracker", "responder", "prefetch"]
Answer = TypeVar("Answer")


def find_member(server: ServerProcess, member: Member) -> psutil.Process | None:
    """The process as far as it is there; the responder once it has its life line."""
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


def ask_each(server: ServerProcess, question: Callable[[psutil.Process], Answer]) -> list[Answer]:
    """What is true of each process, but for those that end meanwhile, as helpers of the start do at any time."""
    answers = []
    for process in server.family():
        with suppress(psutil.NoSuchProcess):
            answers.append(question(process))
    return answers


def has_life_line(process: psutil.Process) -> bool:
    """Whether it has a pipe that brings it a signal (proc(5), `fdinfo`): stopped or not, it ends with its server."""
    with suppress(OSError):  # it ends
        flags = [line.split()[1] for file in Path(f"/proc/{process.pid}/fdinfo").iterdir() for line in _flags(file)]
        return any(int(octal, 8) & os.O_ASYNC for octal in flags)
    return False


def _roles(server: ServerProcess, process: psutil.Process) -> Iterator[Member]:
    words = " ".join(process.cmdline())
    if process.pid == server.process.pid:
        yield "api"
    elif process.ppid() != server.process.pid or "multiprocessing.spawn import" in words:
        yield "engine"  # its parent is the forkserver, or it was started as a new program
    elif "resource_tracker import" in words:
        yield "resource_tracker"
    elif "forkserver import" in words:
        yield "forkserver"
    elif "prefetch.worker" in words:
        yield "prefetch"
    elif has_life_line(process):  # without one it may be anything that is about to become another program
        yield "engine" if _has_torch(process) else "responder"


def _has_torch(process: psutil.Process) -> bool:
    """As forked engines have; the responder is forked before anything is imported."""
    with suppress(OSError):
        return "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()
    return False


def _flags(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text().splitlines() if line.startswith("flags:")]
    except FileNotFoundError:  # closed meanwhile
        return []
