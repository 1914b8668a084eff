"""Gives a fork of the forkserver the process state that a new program would inherit from its parent.

A fork has the environment, standard streams and limits with which the forkserver started. vLLM changes them
before it starts a process. For example, vLLM sets OpenMP variables around each worker's start and raises the
limit of open files. The forkserver passes on variables and streams
(`startup.ground.processes.new_program.run_program`). This module sets the rest of the state.
"""

import os
import resource
import signal
import sys
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from envs import foreign
from startup.ground.processes.library_state import refresh_libraries

_LIMITS: Final = tuple(
    getattr(resource, name) for name in sorted(vars(resource)) if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"
)
_at_exec: dict[str, str] = {}

_NUMBERS: Final = ("MKL_NUM_THREADS", "OMP_NUM_THREADS")
_DYNAMIC: Final = "MKL_DYNAMIC"
_AFFINITY: Final = ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES")
_NAMES: Final = (*_NUMBERS, _DYNAMIC, *_AFFINITY)
_FALSE: Final = ("0", "false", "no", "off")
_CPUS: Final = Path("/sys/devices/system/cpu")
_SEPARATORS: Final = str.maketrans("{},", "   ")


def record_environment_at_exec() -> None:
    """Records the environment that the forkserver's libraries read. Called when the forkserver starts."""
    _at_exec.update(foreign.snapshot())
    record_openmp()


def environment_at_exec() -> Mapping[str, str]:
    """The environment with which the forkserver started. Empty except in the forkserver and its children."""
    return _at_exec


class ChildState(NamedTuple):
    """The state of a parent at the moment when it starts a child."""

    pid: int
    affinity: list[int]
    limits: list[tuple[int, int]]
    umask: int | None
    blocked_signals: list[int]

    @classmethod
    def of_this_process(cls) -> "ChildState":
        """The state that a child of the calling thread would inherit through `exec`."""
        return cls(
            pid=os.getpid(),
            affinity=sorted(os.sched_getaffinity(0)),
            limits=[resource.getrlimit(limit) for limit in _LIMITS],
            umask=_umask(),
            blocked_signals=[int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        )

    def apply(self) -> dict[str, str]:
        """Sets the state of this fork. Returns the variables that have changed since the forkserver started.

        A removed variable is returned with an empty value.
        """
        changed = foreign.changes(_at_exec, foreign.snapshot())
        for limit, (soft, hard) in zip(_LIMITS, self.limits, strict=True):
            if resource.getrlimit(limit) != (soft, hard):
                with suppress(ValueError, OSError):  # above this process's hard limit
                    resource.setrlimit(limit, (soft, hard))
        if self.umask is not None:
            os.umask(self.umask)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.blocked_signals)
        os.sched_setaffinity(0, self.affinity)
        refresh_libraries(changed)
        update_openmp()
        return changed


def _umask() -> int | None:
    """The umask, read from /proc, because umask(2) returns it only by setting a new umask for all threads."""
    lines: Iterable[str] = ()
    with suppress(OSError), open("/proc/self/status") as file:  # noqa: PTH123
        lines = file.readlines()
    return next((int(line.split()[1], 8) for line in lines if line.startswith("Umask:")), None)


class _State(NamedTuple):
    """The state that OpenMP and MKL read when they are loaded."""

    variables: dict[str, str]
    cpus: set[int]

    @classmethod
    def of_this_process(cls) -> "_State":
        return cls({name: foreign.text_of(name) for name in _NAMES}, os.sched_getaffinity(0))


_at_import: _State | None = None


def record_openmp() -> None:
    """Records the state for `update_openmp`. Called before torch's import. Later calls do nothing."""
    global _at_import
    _at_import = _at_import or _State.of_this_process()


def update_openmp() -> None:
    """Sets torch's number of threads, and the CPUs that OpenMP's threads will inherit from this thread.

    A process that forks later must not call this, because torch starts a thread if the number changes.
    """
    now = _State.of_this_process()
    if _at_import is None or now == _at_import:
        return
    torch = sys.modules.get("torch")
    if torch is not None:
        _set_num_threads(torch, now.cpus)
    changed = (now.variables[name] for name in _AFFINITY if now.variables[name] != _at_import.variables[name])
    places = next(filter(None, map(parse_cpus, changed)), None)
    if places is not None:
        with suppress(OSError):  # a CPU does not exist or is not allowed for this process
            os.sched_setaffinity(0, places)


def _set_num_threads(torch: Any, cpus: set[int]) -> None:
    has_mkl = torch.backends.mkl.is_available()
    wanted = num_threads_at_import(cpus, has_mkl=has_mkl)
    if wanted != torch.get_num_threads():
        torch.set_num_threads(wanted)


def num_threads_at_import(cpus: Collection[int], *, has_mkl: bool) -> int:
    """The number of threads that torch would choose if it were imported now.

    With MKL, torch uses one thread per core that the process may use, and MKL_NUM_THREADS has precedence over
    OMP_NUM_THREADS. Unless MKL_DYNAMIC is false, a variable's number is limited to the number of cores.
    Without MKL, torch uses one thread per CPU, and OMP_NUM_THREADS has precedence.
    """
    numbers = [_first_number(foreign.text_of(name)) for name in (_NUMBERS if has_mkl else reversed(_NUMBERS))]
    wanted = next(filter(None, numbers), None)
    if not has_mkl:
        return wanted or len(cpus)
    if wanted is None:
        return _num_cores(cpus)
    is_limited = foreign.text_of(_DYNAMIC).lower() not in _FALSE
    return min(wanted, _num_cores(range(os.cpu_count() or wanted))) if is_limited else wanted


def _num_cores(cpus: Collection[int]) -> int:
    return len({_siblings(cpu) for cpu in cpus})


def _first_number(text: str) -> int | None:
    """The first number of a list such as `4,2`, with a number per nesting level. None if it is no number."""
    first = text.partition(",")[0].strip()
    return int(first) if first.isdigit() else None


def _siblings(cpu: int) -> str:
    """The CPUs on the same core as `cpu`, as text. Only `cpu` itself if the kernel does not report them."""
    try:
        return (_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text(encoding="ascii").strip()
    except OSError:
        return str(cpu)


def parse_cpus(text: str) -> set[int]:
    """The CPUs that an OpenMP variable names, as in `0 2-5`, `{0},{1}` or `...proclist=[0,1]`.

    Returns an empty set for any other text.
    """
    _, found, listed = text.partition("proclist=[")
    words = (listed.partition("]")[0] if found else text).translate(_SEPARATORS).split()
    cpus: set[int] = set()
    for word in words:
        first, _, last = word.partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            return set()
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus
