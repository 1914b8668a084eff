"""Describes the state of a process for tests."""

import multiprocessing
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    parent = multiprocessing.parent_process()
    return {
        "name": multiprocessing.current_process().name,
        "title": Path("/proc/self/comm").read_text().strip(),
        "argv": sys.argv,
        "pid": os.getpid(),
        "ppid": os.getppid(),
        "parent": parent.pid if parent else None,
        "environment": dict(os.environ),
        "streams": [str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in (1, 2)],
        "affinity": sorted(os.sched_getaffinity(0)),
        "umask": _umask(),
        "max_open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "blocked_signals": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "imported_in": {name: pid for name in list(sys.modules) if (pid := _imported_in(name)) is not None},
        "modules": sorted(name for name in list(sys.modules) if name.startswith(("vllm.", "torch._inductor"))),
        "libraries": _libraries(),
    }


def _imported_in(name: str) -> int | None:
    return vars(sys.modules[name]).get("IMPORTED_IN") if name.startswith("vllm") else None


def _umask() -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("Umask:"))


def _libraries() -> dict[str, Any]:
    found: dict[str, Any] = {}
    if (hub := sys.modules.get("huggingface_hub.constants")) is not None:
        found["hub_is_offline"] = hub.HF_HUB_OFFLINE
    if (torch := sys.modules.get("torch")) is not None:
        found["torch_num_threads"] = torch.get_num_threads()
        found["cuda_is_initialized"] = torch.cuda.is_initialized()
    return found
