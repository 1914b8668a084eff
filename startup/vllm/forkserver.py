"""Lets what vLLM wants to `spawn` be forked from a forkserver that has imported vLLM already.

vLLM's CPU platform insists on `spawn`, and vLLM refuses `forkserver` as a setting; so `spawn` is given another meaning
in the processes of this start. multiprocessing's own forkserver does the forking. Beyond it, children have their
parent's present state (`child_state`), end with the process that started them (`startup.processes.death_pipe`) and
outlive the forkserver; children of children are forked from the same one (multiprocessing would start another).
"""

import io
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from multiprocessing import context, forkserver, popen_forkserver, popen_spawn_posix, process, util
from multiprocessing.connection import wait
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import Any, Final

from envs import foreign
from startup.processes import group_signals
from startup.processes.death_pipe import arm
from startup.processes.new_program import with_own_packages_as_main
from startup.vllm.child_state import ChildState
from startup.vllm.journal import FORKSERVER, Journal
from startup.vllm.serving_events import ChildPipes, report_serving_from_child

logger = logging.getLogger(__name__)

_READ_AT_EXEC: Final = ("LD_PRELOAD", "PYTHONHASHSEED", "PYTHONMALLOC", "MALLOC_ARENA_MAX")
"""Variables that only a new program can take over."""
_STATUS_S: Final = 1.0
"""How long the forkserver may take to tell the exit code of a child that has ended."""


class PreloadedContext(context.ForkServerContext):
    """What `multiprocessing.get_context("spawn")` returns once `redirect_spawn` was called."""

    _name = "spawn"

    @property
    def Process(self) -> type["PreloadedProcess"]:  # type: ignore[override]  # noqa: N802 - multiprocessing's name
        return PreloadedProcess


def redirect_spawn(
    journal: Journal, *, server_pid: int, environment: Mapping[str, str], notices: ChildPipes | None = None
) -> None:
    """Gives `spawn` its other meaning in this process and in those forked from it.

    Args:
        journal: where children note what they did; each has a file of its own.
        server_pid: the forkserver.
        environment: what the forkserver began with.
        notices: where children that serve say so.
    """
    _start.journal = journal
    _start.notices = notices
    _start.server_pid = server_pid
    _start.environment = environment
    context._concrete_contexts["spawn"] = PreloadedContext()  # type: ignore[attr-defined]
    server: Any = forkserver._forkserver
    server.ensure_running = _leave_running(server.ensure_running, server)


class _Start:
    """What is known of this start in each of its processes."""

    journal: Journal | None = None
    server_pid: int | None = None
    environment: Mapping[str, str] = {}
    notices: ChildPipes | None = None
    """Where a process that serves the port says so; None where the port is vLLM's own."""
    lifeline: tuple[int, int, int] | None = None
    """Owner's pid and both ends of the pipe whose closing ends this process's children."""


_start = _Start()


class PreloadedProcess(process.BaseProcess):
    """A process whose object carries its parent's state; what it starts itself by default is spawned as it was."""

    _start_method = "spawn"

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> Any:  # noqa: N802 - multiprocessing's name
        if not isinstance(process_obj, PreloadedProcess):  # of the default context: it knows nothing of a state
            return popen_spawn_posix.Popen(process_obj)
        if (reason := _why_not_forked()) is not None:
            logger.warning("%s is started anew instead of forked: %s", process_obj.name, reason)
            return popen_spawn_posix.Popen(process_obj)
        return _ForkedPopen(process_obj)

    def __reduce_ex__(self, protocol: Any) -> Any:
        plain = super().__reduce_ex__(2)
        if not isinstance(context.get_spawning_popen(), _ForkedPopen):
            return plain
        notices = None if _start.notices is None else tuple(map(DupFd, _start.notices))
        return _revive, (ChildState.of_this_process(), DupFd(_lifeline()), notices, self.name, _dump(plain))


class _ForkedPopen(popen_forkserver.Popen):
    """Watches the child itself: multiprocessing watches a pipe that the forkserver holds, whose end looks like it."""

    def _launch(self, process_obj: process.BaseProcess) -> None:
        with with_own_packages_as_main(), _noted(process_obj.name), group_signals.interrupting():
            super()._launch(process_obj)  # type: ignore[misc]
        self._status_fd: int | None = None
        with suppress(OSError):  # an old kernel, or the child is gone: the pipe will do
            pidfd = os.pidfd_open(self.pid)
            self._status_fd, self.sentinel = self.sentinel, pidfd
            util.Finalize(self, util.close_fds, (pidfd,))  # type: ignore[attr-defined]

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        if self._status_fd is None:
            code: int | None = super().poll(flag)
            return code
        if self.returncode is None and wait([self.sentinel], timeout=0 if flag == os.WNOHANG else None):
            self.returncode = _read_exit_code(self._status_fd, self.pid)
        return self.returncode


def _noted(child: str) -> AbstractContextManager[None]:
    """A forkserver forks when it has imported all; until then this waits."""
    return _start.journal.span(f"start_{child}", waits_for=FORKSERVER) if _start.journal else nullcontext()


def _read_exit_code(status_fd: int, pid: int) -> int:
    """As the forkserver tells it; where that is gone, its children may have become this process's, else 255."""
    if wait([status_fd], timeout=_STATUS_S):
        with suppress(OSError, EOFError):
            return int(forkserver.read_signed(status_fd))
    with suppress(ChildProcessError):
        _, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status)
    return 255


def _why_not_forked() -> str | None:
    if _start.server_pid is None or not _is_alive(_start.server_pid):
        return "the forkserver is gone"
    for name in _READ_AT_EXEC:
        wanted = foreign.text_of(name)
        if not set(wanted.split(":")) <= {"", *_start.environment.get(name, "").split(":")}:
            return f"{name} is {wanted!r}, which only a new program can take over"
    return None


def _is_alive(pid: int) -> bool:
    """Asks the kernel; a connection that brings no request would end the forkserver."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def _leave_running(ensure_running: Callable[[], None], server: Any) -> Callable[[], None]:
    """multiprocessing would start another forkserver in each child, which cannot wait for the first as a parent can."""

    def leave_running() -> None:
        if server._forkserver_alive_fd is None or server._forkserver_address is None:
            ensure_running()

    return leave_running


def _lifeline() -> int:
    """The end of the pipe that children watch; the other is closed when this process ends, and not before."""
    if _start.lifeline is None or _start.lifeline[0] != os.getpid():
        _start.lifeline = (os.getpid(), *os.pipe())
        os.register_at_fork(after_in_child=_drop_lifeline)
    return _start.lifeline[1]


def _drop_lifeline() -> None:
    """A forked process must not keep its parent's children alive."""
    if _start.lifeline is not None and _start.lifeline[0] != os.getpid():
        for fd in _start.lifeline[1:]:
            with suppress(OSError):
                os.close(fd)
        _start.lifeline = None


def _dump(plain: Any) -> bytes:
    buffer = io.BytesIO()
    ForkingPickler(buffer, 2).dump(plain)
    return buffer.getvalue()


def _revive(state: ChildState, lifeline: Any, notices: Any, name: str, plain: bytes) -> process.BaseProcess:
    """In the child: first the parent's state, then the process object, whose arguments may import and look about."""
    begin_ns = time.monotonic_ns()
    watched = lifeline.detach()
    arm(watched)
    os.close(watched)
    process.current_process().name = name
    changed = state.take_over()
    if _start.journal is not None:
        _start.journal.mark_loaded_modules()
        _start.journal.record_environment(changed)
    if notices is not None:
        _start.notices = ChildPipes(*(end.detach() for end in notices))
        report_serving_from_child(_start.notices)
    make, arguments, attributes, *_ = ForkingPickler.loads(plain)
    revived: process.BaseProcess = make(*arguments)
    vars(revived).update(attributes)
    if _start.journal is not None:
        _start.journal.add_span("take_over", begin_ns, time.monotonic_ns())
    return revived
