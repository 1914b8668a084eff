"""Runs in API servers, engines and workers of vLLM. At a signal, each process writes its settings.

The signal's handler runs on the main thread of each process, with every launcher.
"""

import json
import multiprocessing
import os
import resource
import signal
import sys
import threading
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FOLDER_VARIABLE = "OBSERVER_FOLDER"


class _Finder:
    """Makes each process of vLLM install the handler where it loads plugins."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "vllm.plugins":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_change(module: Any) -> None:
            execute(module)
            load = module.load_general_plugins
            module.load_general_plugins = lambda: (_install(), load())

        spec.loader.exec_module = execute_and_change
        return spec


def observe() -> None:
    """Called when the interpreter starts. A plugin would change the order of our imports."""
    sys.meta_path.insert(0, _Finder())


def _install() -> None:
    """Forked processes inherit the handler."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR2, _write_settings)


def _write_settings(*_: object) -> None:
    folder = Path(os.environ[FOLDER_VARIABLE])
    unfinished = folder / f"{os.getpid()}.unfinished"
    unfinished.write_text(json.dumps(_settings()))
    unfinished.rename(folder / f"{os.getpid()}.json")


def _settings() -> dict[str, object]:
    torch = sys.modules["torch"]
    limits = {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")}
    return {
        "name": multiprocessing.current_process().name,
        "is_daemon": multiprocessing.current_process().daemon,
        "environment": dict(os.environ),
        "num_threads": torch.get_num_threads(),
        "affinity": sorted(os.sched_getaffinity(0)),
        "affinity_of_threads": sorted({_cpus(path) for path in Path("/proc/self/task").iterdir()}),
        "limits": limits,
        "niceness": os.nice(0),
        "umask": next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Umask")),
        "blocked_signals": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "preloaded": sorted(name for name in ("libtcmalloc", "libgomp") if name in Path("/proc/self/maps").read_text()),
        "streams": [str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in (0, 1, 2)],
        "folder": str(Path.cwd()),
        "start_method": multiprocessing.get_start_method(allow_none=True),
        "switch_interval_s": sys.getswitchinterval(),
        "gc": __import__("gc").isenabled(),
        "gc_threshold": __import__("gc").get_threshold(),
    }


def _cpus(task: Path) -> str:
    try:
        lines = (task / "status").read_text().splitlines()
    except OSError:  # the thread has ended
        return ""
    return next(line.split()[1] for line in lines if line.startswith("Cpus_allowed_list"))
