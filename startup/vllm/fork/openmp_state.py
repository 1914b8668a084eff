"""Updates OpenMP and torch's number of threads in a fork of the forkserver.

They have read their variables when the forkserver imported them. vLLM sets other values around each worker's
start.
"""

import os
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from envs import foreign

_NUMBERS: Final = ("MKL_NUM_THREADS", "OMP_NUM_THREADS")
_DYNAMIC: Final = "MKL_DYNAMIC"
_AFFINITY: Final = ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES")
_NAMES: Final = (*_NUMBERS, _DYNAMIC, *_AFFINITY)
_FALSE: Final = ("0", "false", "no", "off")
_CPUS: Final = Path("/sys/devices/system/cpu")
_SEPARATORS: Final = str.maketrans("{},", "   ")


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
        wanted = num_threads_at_import(now.cpus, has_mkl=torch.backends.mkl.is_available())
        if wanted != torch.get_num_threads():
            torch.set_num_threads(wanted)
    before = _at_import.variables
    changed = [now.variables[name] for name in _AFFINITY if now.variables[name] != before[name]]
    places = next(filter(None, map(parse_cpus, changed)), None)
    if places is not None:
        with suppress(OSError):  # a CPU does not exist or is not allowed for this process
            os.sched_setaffinity(0, places)


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
