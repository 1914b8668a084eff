"""What a child of `exec` would have had of its parent, for children that are forked from a forkserver instead.

A forkserver's children have the environment, the standard streams and the limits that the forkserver began with. vLLM
changes them between its own start and that of its children: it sets OpenMP variables around each worker's start, raises
the limit of open files, and so on. The parent's present state travels with the process object and is taken over
before anything else of it is unpickled.
"""

import os
import resource
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import context
from multiprocessing.reduction import DupFd
from typing import Any, Final

from envs import foreign

STREAMS: Final = (1, 2)
_LIMITS: Final = tuple(
    getattr(resource, name) for name in sorted(vars(resource)) if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"
)
_AFFINITY: Final = ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES")
"""Where OpenMP's threads are to run; OpenMP itself reads these only when it is loaded."""

_SEPARATORS: Final = str.maketrans("{},", "   ")

_at_exec: dict[str, str] = {}


def record_environment_at_exec() -> None:
    """To be called in a forkserver as it begins: what its libraries read when they were loaded."""
    _at_exec.update(foreign.snapshot())


def environment_at_exec() -> Mapping[str, str]:
    """The environment that the forkserver began with, in the forkserver and its children."""
    return _at_exec


@dataclass(frozen=True)
class ChildState:
    """One parent's state at the start of one child; made while the process object is pickled."""

    environment: dict[str, str]
    streams: tuple[Any, ...]
    """Duplicates of the parent's standard output and error."""
    affinity: tuple[int, ...]
    limits: tuple[tuple[int, int], ...]
    umask: int | None
    blocked_signals: tuple[int, ...]

    @classmethod
    def of_this_process(cls) -> "ChildState":
        """The state of the calling thread's process, as `exec` would hand it on."""
        assert context.get_spawning_popen() is not None, "only while a process object is pickled"
        return cls(
            environment=foreign.snapshot(),
            streams=tuple(DupFd(fd) if _is_open(fd) else None for fd in STREAMS),
            affinity=tuple(sorted(os.sched_getaffinity(0))),
            limits=tuple(resource.getrlimit(limit) for limit in _LIMITS),
            umask=_umask(),
            blocked_signals=tuple(int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        )

    def take_over(self) -> dict[str, str]:
        """Makes this process what the parent was; returns the variables that differ from the forkserver's."""
        for fd, stream in zip(STREAMS, self.streams, strict=True):
            if stream is not None:
                _put_in_place(stream.detach(), fd)
        changed = _take_environment(self.environment)
        for limit, values in zip(_LIMITS, self.limits, strict=True):
            if resource.getrlimit(limit) != values:
                with suppress(ValueError, OSError):  # above what this process may have
                    resource.setrlimit(limit, values)
        if self.umask is not None:
            os.umask(self.umask)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.blocked_signals)
        os.sched_setaffinity(0, self.affinity)
        _thaw(changed)
        return changed


def _take_environment(wanted: Mapping[str, str]) -> dict[str, str]:
    """Returns what has changed since the forkserver began; a variable that is gone is empty."""
    for name in set(foreign.snapshot()) - set(wanted):
        os.environ.pop(name)
    for name, value in wanted.items():
        if not foreign.is_set(name) or foreign.text_of(name) != value:
            os.environ[name] = value
    names = {name for name in {*wanted, *_at_exec} if wanted.get(name) != _at_exec.get(name)}
    return {name: wanted.get(name, "") for name in sorted(names)}


def _thaw(changed: Mapping[str, str]) -> None:
    """Sets right what libraries work out of variables when they are imported, and so have worked out too early."""
    if "TZ" in changed:
        time.tzset()
    if "numpy" in sys.modules:  # Python's own generator sees to this itself
        sys.modules["numpy"].random.seed()
    _thaw_openmp(changed)
    _thaw_inductor(changed)
    _thaw_hub(changed)
    _thaw_prometheus(changed)


def _thaw_openmp(changed: Mapping[str, str]) -> None:
    """The threads will be created in this process: they inherit where it may run, and torch says how many they are."""
    cpus = next((cpus for name in _AFFINITY if (cpus := parse_cpus(changed.get(name, "")))), None)
    if cpus is not None:
        with suppress(OSError):  # a processor that is not there or not ours
            os.sched_setaffinity(0, cpus)
    num_threads = changed.get("OMP_NUM_THREADS", "")
    torch = sys.modules.get("torch")
    if torch is not None and num_threads.isdigit():
        torch.set_num_threads(int(num_threads))


def _thaw_inductor(changed: Mapping[str, str]) -> None:
    config: Any = sys.modules.get("torch._inductor.config")
    if config is None:
        return
    threads = changed.get("TORCHINDUCTOR_COMPILE_THREADS", "")
    if threads.isdigit():
        config.compile_threads = int(threads)
    if "TORCHINDUCTOR_CPP_DYNAMIC_THREADS" in changed:
        config.cpp.dynamic_threads = changed["TORCHINDUCTOR_CPP_DYNAMIC_THREADS"] == "1"


def _thaw_hub(changed: Mapping[str, str]) -> None:
    """Whether the hub may be asked is read once, when its client is imported."""
    constants: Any = sys.modules.get("huggingface_hub.constants")
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    if constants is not None and any(name in changed for name in names):
        constants.HF_HUB_OFFLINE = any(foreign.text_of(name).upper() in ("1", "ON", "YES", "TRUE") for name in names)
    if constants is not None and "HF_TOKEN" in changed and hasattr(constants, "HF_TOKEN"):
        constants.HF_TOKEN = changed["HF_TOKEN"] or None


def _thaw_prometheus(changed: Mapping[str, str]) -> None:
    """Several API servers add their figures up in files, in a folder that the client looks up when it is imported."""
    values: Any = sys.modules.get("prometheus_client.values")
    if values is not None and "PROMETHEUS_MULTIPROC_DIR" in changed:
        values.ValueClass = values.get_value_class()


def parse_cpus(text: str) -> set[int]:
    """Processors named by an OpenMP variable: `0 2-5`, `{0},{1}` or `...proclist=[0,1]`; empty where none are."""
    _, found, listed = text.partition("proclist=[")
    words = (listed.partition("]")[0] if found else text).translate(_SEPARATORS).split()
    cpus: set[int] = set()
    for word in words:
        first, _, last = word.partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            return set()
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _put_in_place(fd: int, place: int) -> None:
    stream = {1: sys.stdout, 2: sys.stderr}[place]
    if stream is not None:
        stream.flush()
    os.dup2(fd, place)
    os.close(fd)


def _umask() -> int | None:
    """Read without setting it, which other threads would notice."""
    lines: Iterable[str] = ()
    with suppress(OSError), open("/proc/self/status") as file:  # noqa: PTH123
        lines = file.readlines()
    return next((int(line.split()[1], 8) for line in lines if line.startswith("Umask:")), None)
