"""Gives the forkserver's children the process state that they would inherit from their parent by `exec`.

A forkserver's children have the environment, standard streams and limits that the forkserver started with.
vLLM changes them between its own start and that of its children: it sets OpenMP variables around each
worker's start, raises the limit of open files, and so on. The parent's current state is pickled with the
process object, and the child applies it before it unpickles the rest.
"""

import os
import resource
import signal
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import context
from multiprocessing.reduction import DupFd
from typing import Any, Final

from envs import foreign
from server.machine.descriptors import is_open
from startup.processes.library_state import refresh_libraries
from startup.vllm.fork.openmp_state import record_openmp, update_openmp

_STREAMS: Final = (1, 2)
_LIMITS: Final = tuple(
    getattr(resource, name) for name in sorted(vars(resource)) if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"
)
_at_exec: dict[str, str] = {}


def record_environment_at_exec() -> None:
    """Called when a forkserver starts: records the environment that its libraries read on import."""
    _at_exec.update(foreign.snapshot())
    record_openmp()


def environment_at_exec() -> Mapping[str, str]:
    """The environment that the forkserver started with; available in the forkserver and its children."""
    return _at_exec


@dataclass(frozen=True)
class ChildState:
    """A parent's state when it starts a child; created while the process object is pickled."""

    pid: int
    environment: dict[str, str]
    streams: tuple[Any, ...]
    """Duplicates of the parent's standard output and error."""
    affinity: tuple[int, ...]
    limits: tuple[tuple[int, int], ...]
    umask: int | None
    blocked_signals: tuple[int, ...]

    @classmethod
    def of_this_process(cls) -> "ChildState":
        """The state that a child of the calling thread would inherit through `exec`."""
        assert context.get_spawning_popen() is not None, "only while a process object is pickled"
        return cls(
            pid=os.getpid(),
            environment=foreign.snapshot(),
            streams=tuple(DupFd(fd) if is_open(fd) else None for fd in _STREAMS),
            affinity=tuple(sorted(os.sched_getaffinity(0))),
            limits=tuple(resource.getrlimit(limit) for limit in _LIMITS),
            umask=_umask(),
            blocked_signals=tuple(int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        )

    def apply(self) -> dict[str, str]:
        """Sets this process's state; returns the variables that differ from the forkserver's."""
        for fd, stream in zip(_STREAMS, self.streams, strict=True):
            if stream is not None:
                _replace_stream(fd, stream.detach())
        changed = _apply_environment(self.environment)
        for limit, values in zip(_LIMITS, self.limits, strict=True):
            if resource.getrlimit(limit) != values:
                with suppress(ValueError, OSError):  # above this process's hard limit
                    resource.setrlimit(limit, values)
        if self.umask is not None:
            os.umask(self.umask)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.blocked_signals)
        os.sched_setaffinity(0, self.affinity)
        refresh_libraries(changed)
        update_openmp()
        return changed


def _apply_environment(wanted: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that changed since the forkserver's start; a removed variable is empty."""
    foreign.replace_all(wanted)
    return foreign.changes(_at_exec, wanted)


def _replace_stream(fd: int, new_fd: int) -> None:
    stream = {1: sys.stdout, 2: sys.stderr}[fd]
    if stream is not None:
        stream.flush()
    os.dup2(new_fd, fd)
    os.close(new_fd)


def _umask() -> int | None:
    """Read from /proc: umask(2) returns the value only by setting another, which affects other threads."""
    lines: Iterable[str] = ()
    with suppress(OSError), open("/proc/self/status") as file:  # noqa: PTH123
        lines = file.readlines()
    return next((int(line.split()[1], 8) for line in lines if line.startswith("Umask:")), None)
