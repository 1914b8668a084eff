"""Gives a fork what `exec` would have given it: the state of another process, and libraries that are updated.

A new program inherits the state of the process that starts it. A fork reads it from /proc, since it inherits
that of a forkserver or a standby's template. The libraries of a new program read its environment when they
are imported. A fork inherits libraries that have read another environment and have drawn random numbers.
Python's `random`, `ssl` and the names of `tempfile` update themselves.
"""

import logging
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, Final

from base.machine.descriptors import is_open
from envs import foreign
from envs.registry import env
from startup.hook import Hook, Name
from startup.processes.messages import RefusedError

FORKED_LIBRARIES: Final = Hook(
    "libraries in forks",
    does="renews what libraries read on import: random state, settings of Inductor, the hub, metrics",
    without="a fork has its parent's state and settings",
    promise="forks are like new programs",
    needs=(
        Name("torch._inductor.config", "compile_threads"),
        Name("transformers.utils.hub", "SESSION_ID"),
        Name("huggingface_hub.constants", "HF_HUB_OFFLINE"),
        Name("prometheus_client.values", "get_value_class", ()),
        Name("prometheus_client.values", "ValueClass"),
    ),
)

STANDARD: Final = (0, 1, 2)
LIMITS: Final = {
    name: getattr(resource, name) for name in vars(resource) if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"
}


def inherit(thread_id: int, blocked: int) -> None:
    """Takes over limits, umask and CPUs of a thread, perhaps of another process. Sets the blocked signals.

    Keeps the own value of what cannot be set, such as a limit above this process's hard limit, and of what a
    sandbox hides in /proc. The thread gives its mask, because it does not wait and may block others by now.

    Raises:
        OSError: the thread has ended.
    """
    status = read_fields(f"/proc/{thread_id}/status")
    with suppress(PermissionError):
        set_limits(thread_id)
    if "Umask" in status:
        os.umask(int(status["Umask"], 8))
    numbers = [number for number in signal.valid_signals() if blocked >> (number - 1) & 1]
    signal.pthread_sigmask(signal.SIG_SETMASK, numbers)
    os.sched_setaffinity(0, os.sched_getaffinity(thread_id))


def set_limits(pid: int) -> str | None:
    """Sets the limits of another process. Returns the reason why one of them cannot be set, or None."""
    reason = None
    for name, number in LIMITS.items():
        wanted = resource.prlimit(pid, number)
        try:
            resource.setrlimit(number, wanted)
        except (ValueError, OSError) as error:
            reason = f"{name} could not be set to {wanted[0]} {wanted[1]}: {error}"
    return reason


def take_descriptors(open_fds: Mapping[int, int], inheritable: Collection[int]) -> None:
    """Gives descriptors the numbers that they have in the requesting process (number -> descriptor here).

    Raises:
        RefusedError: a library uses a number.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    for number, fd in open_fds.items():
        if number not in STANDARD and is_open(number):
            raise RefusedError(f"file descriptor {number} is in use by a library")
        os.dup2(fd, number, inheritable=number in inheritable)
        os.close(fd)


def status_of(pid: int) -> dict[str, str]:
    """The lines of /proc/PID/status, by name. Raises ProcessLookupError if the process has ended."""
    status = read_fields(f"/proc/{pid}/status")
    if "Umask" not in status:  # the process is gone, or a zombie
        raise ProcessLookupError(f"process {pid} has ended")
    return status


def read_fields(path: str) -> dict[str, str]:
    """The values of a file in /proc with a name and a value in each line."""
    lines = (line.partition(":") for line in read_text(path).split("\n"))
    return {name: value.strip() for name, separator, value in lines if separator}


def read_text(path: str) -> str:
    """The beginning of a file in /proc. Empty if the kernel has no such file or does not show it."""
    with suppress(OSError), open(path, "rb", buffering=0) as file:  # noqa: PTH123 - one call of read(2)
        return file.read(65536).decode(errors="replace").strip("\0\n ")
    return ""


def refresh_libraries(changed: Mapping[str, str]) -> None:
    """Updates the imported libraries, except OpenMP (`startup.vllm.fork.openmp_state`). Starts no thread.

    Args:
        changed: variables whose values have changed since the imports. A removed variable is empty.
    """
    if "TZ" in changed:
        time.tzset()
    tempfile.tempdir = None
    renew_random_state()
    _update_inductor(changed)
    update_hub(changed)
    update_prometheus(changed)
    _update_vllm_log()


def renew_random_state() -> None:
    """Draws new seeds, identifiers and keys, so that forks of one process draw different ones."""
    modules: Mapping[str, Any] = sys.modules
    if "numpy.random" in modules:  # numpy imports it when first used, which takes 10 ms
        modules["numpy.random"].seed()
    if "torch" in modules:
        modules["torch"].default_generator.seed()  # torch draws a seed when it is imported, too
    if "uuid" in modules:
        modules["uuid"]._last_timestamp = modules["uuid"]._node = None
    if "transformers.utils.hub" in modules:
        modules["transformers.utils.hub"].SESSION_ID = os.urandom(16).hex()
    multiprocessing.current_process().authkey = os.urandom(32)  # multiprocessing gives its processes their parent's


def _update_inductor(changed: Mapping[str, str]) -> None:
    config: Any = sys.modules.get("torch._inductor.config")
    if config is None:
        return
    threads = changed.get("TORCHINDUCTOR_COMPILE_THREADS", "")
    if threads.isdigit():
        config.compile_threads = int(threads)
    if "TORCHINDUCTOR_CPP_DYNAMIC_THREADS" in changed:
        config.cpp.dynamic_threads = changed["TORCHINDUCTOR_CPP_DYNAMIC_THREADS"] == "1"


def update_hub(changed: Mapping[str, str]) -> None:
    """Applies a changed offline mode or token to the hub's client if it is imported."""
    constants: Any = sys.modules.get("huggingface_hub.constants")
    if constants is not None and not changed.keys().isdisjoint(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")):
        offline = foreign.text_of("HF_HUB_OFFLINE") or foreign.text_of("TRANSFORMERS_OFFLINE")
        constants.HF_HUB_OFFLINE = offline.upper() in ("1", "ON", "YES", "TRUE")
    if constants is not None and "HF_TOKEN" in changed and hasattr(constants, "HF_TOKEN"):
        constants.HF_TOKEN = changed["HF_TOKEN"] or None


def forbid_hub_requests() -> None:
    """Makes the hub's client send no requests in this process and its children, even if imported already."""
    os.environ[env.HF_HUB_OFFLINE.name] = "1"
    update_hub({env.HF_HUB_OFFLINE.name: "1"})


def update_prometheus(changed: Mapping[str, str]) -> None:
    """Makes prometheus_client use a changed folder, in whose files several API servers share metrics."""
    values: Any = sys.modules.get("prometheus_client.values")
    if values is not None and "PROMETHEUS_MULTIPROC_DIR" in changed:
        values.ValueClass = values.get_value_class()


def _update_vllm_log() -> None:
    """Configures vLLM's log again in this process. Older versions of vLLM have done so in the parent."""
    configure = getattr(sys.modules.get("vllm.logger"), "_configure_vllm_root_logger", None)
    if configure is not None and logging.getLogger("vllm").handlers:
        configure()
