"""Checks before a start that the limits of processes and threads have room for it.

Without room, libraries abort the process, wait for ever or send it SIGINT, and no message names the limit.
"""

import resource
import threading
from typing import Final

from base.machine.cgroups import own_cgroups, read_lines
from base.machine.processors import usable_count
from envs import foreign
from startup.errors import StartupError

_LEAST: Final = {"embedded": 8, "vllm": 16}
"""Engine -> processes and threads beside this one without which no start succeeds on one CPU.

Measured starts on one CPU had up to 8 and 73.
"""
_OF_A_CPU: Final = 2
"""How many threads of libraries the embedded engine has for each further CPU."""
_OF_POOLS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
"""Variables with which users limit these threads."""
_FEW: Final = 1024
"""With higher limits, nothing is tried out."""


def check_task_room(engine: str) -> None:
    """Raises StartupError if this process cannot start the processes and threads that each start needs."""
    if not _has_low_limit():
        return
    least = _LEAST[engine]
    if engine == "embedded" and not any(map(foreign.is_set, _OF_POOLS)):
        least += _OF_A_CPU * (usable_count() - 1)
    num = _count_startable(least)
    if num < least:
        message = (
            f"the limit of processes and threads is too low: {num} more can be started, and the {engine} engine needs "
            f"more than {least}. Raise `ulimit -u` or the container's pids limit (`docker run --pids-limit`, "
            "podPidsLimit of the kubelet, TasksMax of systemd)."
        )
        raise StartupError(message, cause="too-many-processes")


def _has_low_limit() -> bool:
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if 0 <= soft < _FEW:
        return True
    limits = [line for cgroup in own_cgroups("pids") for line in read_lines(cgroup.folder / "pids.max")]
    return any(limit.isdigit() and int(limit) < _FEW for limit in limits)


def _count_startable(most: int) -> int:
    """Starts threads until one cannot be started, and ends them. Only the kernel knows all limits."""
    end = threading.Event()
    threads = [threading.Thread(target=end.wait, name="task-room") for _ in range(most)]
    num_started = 0
    try:
        for thread in threads:
            thread.start()
            num_started += 1
    except RuntimeError:  # no room for this one
        pass
    finally:
        end.set()
        for thread in threads[:num_started]:
            thread.join()
    return num_started
