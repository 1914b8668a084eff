"""Finds the processes of a running server by their roles."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeVar

import psutil

from tests.e2e.server_process import ServerProcess
from tests.support.processes import has_death_pipe
from tests.support.waiting import wait_until

Role = Literal["api", "engine", "forkserver", "resource_tracker", "responder", "prefetch"]
Answer = TypeVar("Answer")


def find_process(server: ServerProcess, role: Role) -> psutil.Process | None:
    """The process of the role, or None. A responder is found once it has its death pipe.

    The server of a warm start must be ready. Before that, its forkserver has no name, and its responder has
    torch.
    """
    api = server.serving_process()
    front = set() if api == server.root else {server.root}
    for process in (each for each in server.family() if each not in front):
        with suppress(psutil.NoSuchProcess):
            if role in _roles(api, process):
                return process
    return None


def count_roles(server: ServerProcess) -> Counter[Role]:
    """The number of processes of each role in a cold start."""
    return Counter(
        role for roles in for_each_process(server, lambda process: [*_roles(server.root, process)]) for role in roles
    )


def wait_process(server: ServerProcess, role: Role) -> psutil.Process:
    """Waits for the process of the role."""
    found: list[psutil.Process] = []

    def is_found() -> bool:
        process = find_process(server, role)
        found.extend([process] if process is not None else [])
        return bool(found)

    wait_until(is_found)
    return found[0]


def for_each_process(server: ServerProcess, question: Callable[[psutil.Process], Answer]) -> list[Answer]:
    """The answers for all processes. Processes that exit meanwhile, such as helpers, have no answer."""
    answers = []
    for process in server.family():
        with suppress(psutil.NoSuchProcess):
            answers.append(question(process))
    return answers


def _roles(api: psutil.Process, process: psutil.Process) -> Iterator[Role]:
    words = " ".join(process.cmdline())
    if process == api:
        yield "api"
    elif process.ppid() != api.pid or "multiprocessing.spawn import" in words:
        yield "engine"  # forked by the forkserver, or spawned
    elif "resource_tracker import" in words:
        yield "resource_tracker"
    elif "forkserver import" in words:
        yield "forkserver"
    elif "prefetch.worker" in words:
        yield "prefetch"
    elif has_death_pipe(process):  # without one it may be about to execute another program
        yield "engine" if _has_torch(process) else "responder"


def _has_torch(process: psutil.Process) -> bool:
    """Whether torch is loaded, as in a forked engine. The responder is forked before any heavy import."""
    with suppress(OSError):
        return "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()
    return False
