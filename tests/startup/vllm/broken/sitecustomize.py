"""Breaks one thing that plain vLLM does not use, in every process whose variable BROKEN names it.

Python imports this module at its start if the module's folder is on PYTHONPATH.
"""

import errno
import os
import signal
import sys
from contextlib import nullcontext
from importlib.machinery import PathFinder
from types import SimpleNamespace

_FAULT = os.environ.get("BROKEN", "")
_IS_FORKSERVER = any("forkserver" in argument for argument in sys.orig_argv)


def _before_imports(action):
    """Calls `action` before the module of the engine is imported."""

    def find_spec(name, path=None, target=None):
        return action() if name == "vllm.v1.engine.core" else None

    sys.meta_path.insert(0, SimpleNamespace(find_spec=find_spec))


def _after_import(wanted, change):
    """Calls `change` with the module once it is imported."""

    def find_spec(name, path=None, target=None):
        if name != wanted:
            return None
        sys.meta_path.remove(finder)
        spec = PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (run(module), change(module))
        return spec

    finder = SimpleNamespace(find_spec=find_spec)
    sys.meta_path.insert(0, finder)


def _fail(*_args, **_options):
    raise TypeError("broken")


def _refuse(number):
    def refuse(*_args, **_options):
        raise OSError(number, os.strerror(number))

    return refuse


def _on_request(action):
    """Calls `action` in the forkserver when it receives the first request of a process."""
    import socket
    from multiprocessing import reduction

    socket.recv_fds = reduction.recvfds = lambda *_args, **_options: action()


def _kill(number):
    os.kill(os.getpid(), number)


def _cannot_be_executed():
    import _posixsubprocess

    execute = _posixsubprocess.fork_exec

    def execute_others(arguments, programs, *options):
        is_forkserver = any(b"forkserver" in os.fsencode(argument) for argument in arguments)
        return execute(arguments, [b"/nonexistent"] if is_forkserver else programs, *options)

    _posixsubprocess.fork_exec = execute_others


_PHASE = """
def phase(name):
    if name in known:
        return nullcontext()
    raise kind(28, "No space left on device")
"""
"""Only the type says whether the machine is the cause. The frame of a function in a file would be vLLM's."""


def _without_phases(*known, in_forks=True, kind=KeyError):
    """Our wrapper of vLLM's functions raises an error except for these names, in forks or the API server."""
    scope = {"known": known, "kind": kind, "nullcontext": nullcontext}
    exec(_PHASE, scope)

    def change(journal):
        def set_attribute(start, name, value):
            if name == "record" and value is not None:
                value.phase = scope["phase"]
            object.__setattr__(start, name, value)

        type(journal.this_start).__setattr__ = set_attribute

    if in_forks == _IS_FORKSERVER:
        _after_import("startup.vllm.journal", change)


def _without_system_calls():
    """New system calls fail, as in a sandbox with an older kernel."""
    import fcntl

    os.memfd_create = os.pidfd_open = signal.pidfd_send_signal = _refuse(errno.ENOSYS)
    control = fcntl.fcntl

    def refuse_new(fd, command, *values):
        return _refuse(errno.EINVAL)() if command in (1033, 1034) else control(fd, command, *values)  # F_ADD_SEALS

    fcntl.fcntl = refuse_new


def _without_proc():
    """Hides files in /proc that only vllm-cli reads, as a sandbox does."""
    hidden = ("/stat", "/statm", "/status", "/children", "/smaps_rollup", "/environ", "/cmdline", "/mountinfo")

    def check(event, args):
        name = os.fsdecode(args[0]) if event == "open" and not isinstance(args[0], int) else ""
        if name.startswith("/proc/") and name.endswith(hidden):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)

    sys.addaudithook(check)


def _with_late_readiness():
    """The launcher learns a second late that the server accepts connections."""

    def change(serving_probes):
        start = serving_probes.ServingProbes.start

        async def start_late(*args):
            import asyncio

            await start(*args)
            await asyncio.sleep(1)

        serving_probes.ServingProbes.start = start_late

    _after_import("startup.vllm.serving.serving_probes", change)


_OF_FORKSERVER = {
    "fork": lambda: setattr(os, "fork", _refuse(errno.EAGAIN)),
    "protocol": lambda: _on_request(_fail),
    "answers": lambda: _after_import(
        "startup.processes.messages", lambda module: setattr(module, "READY", b"an unknown answer")
    ),
    "killed with a request": lambda: _on_request(lambda: _kill(signal.SIGKILL)),
    "stopped with a request": lambda: _on_request(lambda: _kill(signal.SIGSTOP)),
    "killed in its imports": lambda: _before_imports(lambda: _kill(signal.SIGKILL)),
    "exits in its imports": lambda: _before_imports(lambda: os._exit(7)),
    "stopped in its imports": lambda: _before_imports(lambda: _kill(signal.SIGSTOP)),
    "raises in its imports": lambda: _after_import(
        "startup.vllm.fork.preload_plan", lambda module: setattr(module.PreloadPlan, "read", _fail)
    ),
    "crashes in its forks": lambda: os.register_at_fork(after_in_child=lambda: _kill(signal.SIGSEGV)),
}
_OF_ALL = {
    "execution": _cannot_be_executed,
    "state of children": lambda: _after_import(
        "startup.vllm.fork.openmp_state", lambda module: setattr(module, "update_openmp", _fail)
    ),
    "patch in engine": lambda: _without_phases(),
    "patch in worker": lambda: _without_phases("executor_init"),
    "patch in API server": lambda: _without_phases(in_forks=False),
    "full disk in engine": lambda: _without_phases(kind=OSError),
    "full disk in worker": lambda: _without_phases("executor_init", kind=OSError),
    "full disk in API server": lambda: _without_phases(in_forks=False, kind=OSError),
    "no memory in launcher": lambda: _after_import(
        "startup.vllm.fork.forkserver", lambda module: setattr(module, "start_forkserver", lambda *_: bytes(1 << 62))
    ),
    "step of the launcher": lambda: _after_import(
        "startup.vllm.fork.forkserver", lambda module: setattr(module, "start_forkserver", _fail)
    ),
    "late readiness": _with_late_readiness,
    "system calls": _without_system_calls,
    "proc": _without_proc,
}

if _FAULT in _OF_ALL:
    _OF_ALL[_FAULT]()
elif _FAULT in _OF_FORKSERVER and _IS_FORKSERVER:
    _OF_FORKSERVER[_FAULT]()
