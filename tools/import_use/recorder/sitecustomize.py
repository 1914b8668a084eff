"""Records, in each process of a start, each module's self time and importer, and whether its code runs later.

Python imports this module when it begins, because `tools.import_use` puts its folder on PYTHONPATH. A module
counts as used if one of its functions runs while the module itself is not being imported.
"""

import importlib._bootstrap as bootstrap  # type: ignore[import-not-found]
import json
import os
import sys
import threading
import time

FOLDER = os.environ["IMPORT_USE_FOLDER"]
_PERIOD_S = 2.0

modules: dict[str, dict[str, object]] = {}
"""Module -> its file, its self time in ms, its importer, and whether it was loaded by the parent process."""
used: set[str] = set()
"""Files whose functions have run."""
_loading: list[list[object]] = []
"""The modules that are being imported: name, begin, time of inner imports."""
_loading_files: set[str] = set()
_next_s = 0.0
"""When the record is written next, on the monotonic clock."""
_load = bootstrap._load_unlocked


def _record_load(spec):  # type: ignore[no-untyped-def]
    importer = _loading[-1][0] if _loading else None
    _loading.append([spec.name, time.perf_counter(), 0.0])
    if spec.origin:
        _loading_files.add(spec.origin)
    try:
        return _load(spec)
    finally:
        name, begin, inner = _loading.pop()
        spent = time.perf_counter() - begin
        if _loading:
            _loading[-1][2] += spent
        _loading_files.discard(spec.origin)
        modules[name] = {"file": spec.origin, "ms": 1e3 * (spent - inner), "by": importer}


def _note_call(code):  # type: ignore[no-untyped-def]
    """Notes the file of a function that runs. Writes the record now and then: a thread would hinder forks."""
    global _next_s
    if code.co_filename not in _loading_files:
        used.add(code.co_filename)
    if time.monotonic() > _next_s:
        _next_s = time.monotonic() + _PERIOD_S
        _write()


def _trace_calls() -> None:
    """Notes the first call of each function. Before Python 3.12, each call costs a call of the profiler."""
    if sys.version_info >= (3, 12):
        events, tool = sys.monitoring.events, sys.monitoring.PROFILER_ID
        sys.monitoring.use_tool_id(tool, "import_use")
        sys.monitoring.register_callback(tool, events.PY_START, lambda code, _: _note_call(code))
        sys.monitoring.set_events(tool, events.PY_START)
        return

    def profile(frame, event, _):  # type: ignore[no-untyped-def]
        if event == "call":
            _note_call(frame.f_code)

    threading.setprofile(profile)
    sys.setprofile(profile)


def _write() -> None:
    path = f"{FOLDER}/{os.getpid()}.json"
    with open("/proc/self/cmdline", "rb") as file:  # noqa: PTH123
        command = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    with open(f"{path}.new", "w") as file:  # noqa: PTH123
        json.dump({"command": command, "modules": dict(modules), "used": sorted(used)}, file)
    os.replace(f"{path}.new", path)  # noqa: PTH105


def _begin_in_child() -> None:
    for module in modules.values():
        module["inherited"] = True
    used.clear()


bootstrap._load_unlocked = _record_load
os.register_at_fork(after_in_child=_begin_in_child)
_trace_calls()
