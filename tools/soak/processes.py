"""Measures memory, open files and threads of a server's processes, by role."""

import contextlib
from collections.abc import Iterator
from typing import Final

import psutil

from tools.soak.results import GroupSample

_ROLES: Final = (
    ("multiprocessing.resource_tracker", "resource tracker"),
    ("multiprocessing.forkserver", "forkserver"),
    ("multiprocessing.spawn", "spawned"),
    ("template_worker", "template renderer"),
)
"""Words of a command line, and the role of such a process."""
_CHILD_OF: Final = {"forkserver": "engine"}
"""A forked child has its parent's command line."""


def sample_processes(root_pid: int) -> dict[str, GroupSample]:
    """The descendants of a process, added up by role, so that one process may replace another.

    Leaves out processes that exit meanwhile; PSS and USS are None without the permission to read them.
    """
    samples: dict[str, GroupSample] = {}
    for process, role in _walk(root_pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            sample = _sample(process)
            samples[role] = samples[role].plus(sample) if role in samples else sample
    return samples


def _walk(root_pid: int) -> Iterator[tuple[psutil.Process, str]]:
    roles: dict[int, str] = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(root_pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                roles[process.pid] = role = _find_role(process, roles.get(process.ppid()))
                yield process, role


def _find_role(process: psutil.Process, parent_role: str | None) -> str:
    if parent_role is None:
        return "server"
    words = " ".join(process.cmdline())
    role = next((role for word, role in _ROLES if word in words), process.name())
    return _CHILD_OF.get(role, role) if role == parent_role else role


def _sample(process: psutil.Process) -> GroupSample:
    with process.oneshot():
        pss, uss = _read_shares(process)
        rss = process.memory_info().rss
        return GroupSample(rss, pss, uss, process.num_fds(), process.num_threads(), 1)


def _read_shares(process: psutil.Process) -> tuple[int | None, int | None]:
    try:
        full = process.memory_full_info()
    except psutil.AccessDenied:
        return None, None
    return int(full.pss), int(full.uss)
