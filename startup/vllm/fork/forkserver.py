"""Forks the processes that vLLM starts with `spawn` from a forkserver that has imported vLLM already.

vLLM's CPU platform requires `spawn`, and vLLM rejects `forkserver` as a setting. So `spawn` is replaced in
the processes of this start by multiprocessing's forkserver, with four differences: children get their
parent's current state (`child_state`), end with the process that started them
(`startup.processes.death_pipe`), and outlive the forkserver; children of children are forked from the same
forkserver, where multiprocessing would start another.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from multiprocessing import context, forkserver, popen_forkserver, popen_spawn_posix, process, util
from multiprocessing.connection import wait
from multiprocessing.reduction import DupFd
from typing import Any, Final

from base.machine.processes import is_alive
from envs import foreign
from startup.crash.output_record import OutputRecord
from startup.hooks.hook import Hook, Name, Text
from startup.processes.death_pipe import arm
from startup.processes.forkserver_watch import ended_if_it_hangs
from startup.processes.new_program import without_main_module
from startup.vllm.fork.child_state import ChildState
from startup.vllm.fork.recorded_ends import dump, reduce_spawned, restore, stop_recording_forks
from startup.vllm.journal import FORKSERVER, Journal
from startup.vllm.probes.serving_events import ChildPipes, report_serving

PROCESS_START: Final = Hook(
    "process start",
    does="forks engines, workers and API servers from the forkserver where vLLM uses `spawn`",
    without="every process imports vLLM itself",
    needs=(
        Text(("vllm.utils.system_utils",), r"def get_mp_context\(.*?multiprocessing\.get_context\(", "get_mp_context"),
        Text(("vllm.envs",), r'"VLLM_WORKER_MULTIPROC_METHOD"', "VLLM_WORKER_MULTIPROC_METHOD"),
        Text(("vllm.v1.engine.utils",), r"get_mp_context\(\)", "a start of engines with get_mp_context"),
    ),
    is_essential=True,
)

_SERVER: Final = "multiprocessing.forkserver"
MULTIPROCESSING: Final = Hook(
    "multiprocessing's forkserver",
    does="is the context of `spawn`; children outlive it and end with their parent",
    without="every process imports vLLM itself",
    needs=(
        Name("multiprocessing.context", "_concrete_contexts"),
        Name("multiprocessing.context", "ForkServerContext"),
        Name("multiprocessing.context", "get_spawning_popen"),
        Name(_SERVER, "_forkserver"),
        Name(_SERVER, "ForkServer.ensure_running", ()),
        Name(_SERVER, "ForkServer._forkserver_pid"),
        Name(_SERVER, "ForkServer._forkserver_alive_fd"),
        Name(_SERVER, "ForkServer._forkserver_address"),
        Name(_SERVER, "read_signed", ("fd",)),
        Name("multiprocessing.popen_forkserver", "Popen._launch", ("process_obj",)),
        Name("multiprocessing.popen_forkserver", "Popen.poll", ("flag",)),
        Name("multiprocessing.popen_fork", "Popen._send_signal", ("sig",)),
        Name("multiprocessing.popen_spawn_posix", "Popen"),
        Name("multiprocessing.util", "Finalize"),
        Name("multiprocessing.util", "close_fds"),
    ),
    is_essential=True,
)

logger = logging.getLogger(__name__)

READ_AT_EXEC: Final = ("LD_PRELOAD", "PYTHONHASHSEED", "PYTHONMALLOC", "MALLOC_ARENA_MAX")
"""Variables that are read only when a program starts, so that a forked child cannot apply them."""
_STATUS_S: Final = 1.0
"""Timeout for the exit code of an ended child, which the forkserver sends."""
_logged: Final[set[str]] = set()
"""Reasons why processes are new programs; each is logged once."""


class PreloadedContext(context.ForkServerContext):
    """The context that `multiprocessing.get_context("spawn")` returns after `redirect_spawn`."""

    _name = "spawn"

    @property
    def Process(self) -> type["PreloadedProcess"]:  # type: ignore[override]  # noqa: N802 - multiprocessing's name
        return PreloadedProcess


def redirect_spawn(
    journal: Journal,
    record: OutputRecord,
    *,
    server_pid: int,
    environment: Mapping[str, str],
    pipes: ChildPipes | None = None,
) -> None:
    """Makes `spawn` fork from the forkserver, in this process and in those forked from it.

    Args:
        journal: records what this process does; children write to files of their own beside it.
        record: gets what all processes write.
        server_pid: the forkserver.
        environment: the environment that the forkserver started with.
        pipes: connect serving children to the launcher; None if vLLM opens the port itself.
    """
    _start.journal = journal
    _start.record = record
    _start.pipes = pipes
    _start.server_pid = server_pid
    _start.environment = environment
    context._concrete_contexts["spawn"] = PreloadedContext()  # type: ignore[attr-defined]
    server: Any = forkserver._forkserver
    server.ensure_running = _leave_running(server.ensure_running, server)


class _Start:
    """This start's state, of which each process has a copy."""

    journal: Journal | None = None
    record: OutputRecord | None = None
    """What this process and its children write; the forkserver's has not begun, as it writes nothing."""
    server_pid: int | None = None
    environment: Mapping[str, str] = {}
    pipes: ChildPipes | None = None
    """Connect a process that serves the port to the launcher; None if vLLM opens the port itself."""
    death_pipe: tuple[int, int, int] | None = None
    """Owner's pid, read end and write end; this process's children end when the write end closes."""


_start = _Start()


class PreloadedProcess(process.BaseProcess):
    """A process that is forked from the forkserver and gets its parent's state."""

    _start_method = "spawn"

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> Any:  # noqa: N802 - multiprocessing's name
        if not isinstance(process_obj, PreloadedProcess):  # of the default context: its pickle has no state
            return popen_spawn_posix.Popen(process_obj)
        if (reason := _why_not_forked()) is not None:
            if reason not in _logged:
                _logged.add(reason)
                logger.warning("%s is started as a new program instead of forked: %s", process_obj.name, reason)
            return popen_spawn_posix.Popen(process_obj)
        return _ForkedPopen(process_obj)

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(2)
        if not isinstance(context.get_spawning_popen(), _ForkedPopen):
            return reduced if _start.record is None else reduce_spawned(reduced, self.name, _start.record)
        pipes = None if _start.pipes is None else tuple(map(DupFd, _start.pipes))
        return _restore, (
            ChildState.of_this_process(),
            DupFd(_death_pipe()),
            pipes,
            self.name,
            dump(reduced),
        )


class _ForkedPopen(popen_forkserver.Popen):
    """Waits for the child by its pidfd: multiprocessing's pipe also closes when the forkserver exits."""

    def _launch(self, process_obj: process.BaseProcess) -> None:
        with without_main_module(), _recorded(process_obj.name), ended_if_it_hangs(_start.server_pid or 0):
            super()._launch(process_obj)  # type: ignore[misc]
        self._status_fd: int | None = None
        with suppress(OSError):  # an old kernel, or the child has exited: the pipe is used instead
            pidfd = os.pidfd_open(self.pid)
            self._status_fd, self.sentinel = self.sentinel, pidfd
            util.Finalize(self, util.close_fds, (pidfd,))  # type: ignore[attr-defined]

    def _send_signal(self, sig: int) -> None:
        if (err := sys.exception()) is not None and _start.record is not None:
            _start.record.add_reason(err, process.current_process().name)
        super()._send_signal(sig)  # type: ignore[misc]

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        if self._status_fd is None:
            code: int | None = super().poll(flag)
            return code
        if self.returncode is None and wait([self.sentinel], timeout=0 if flag == os.WNOHANG else None):
            self.returncode = _read_exit_code(self._status_fd, self.pid)
        return self.returncode


def _recorded(child: str) -> AbstractContextManager[None]:
    """Records a span that waits for the forkserver, which forks only after all of its imports."""
    return _start.journal.span(f"start_{child}", waits_for=FORKSERVER) if _start.journal else nullcontext()


def _read_exit_code(status_fd: int, pid: int) -> int:
    """The code from the forkserver; if that has exited, from the kernel for an inherited child, else 255."""
    if wait([status_fd], timeout=_STATUS_S):
        with suppress(OSError, EOFError):
            return int(forkserver.read_signed(status_fd))
    with suppress(ChildProcessError):
        _, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status)
    return 255


def _why_not_forked() -> str | None:
    if _start.server_pid is None or not is_alive(_start.server_pid):
        return "the forkserver has exited"
    for name in READ_AT_EXEC:
        wanted = foreign.text_of(name)
        if not _is_applied(name, wanted, _start.environment.get(name, "")):
            return f"{name} is {wanted!r}, which only a new program can apply"
    return None


def _is_applied(name: str, wanted: str, at_exec: str) -> bool:
    """Whether a fork of a program with one value is as one that was started with the other."""
    if name == "LD_PRELOAD":  # further libraries do no harm
        return set(wanted.split(":")) <= {"", *at_exec.split(":")}
    return wanted in ("", at_exec)


def _leave_running(ensure_running: Callable[[], None], server: Any) -> Callable[[], None]:
    """Wraps `ensure_running`, which would start another forkserver in a child: a child is not its parent."""

    def leave_running() -> None:
        if server._forkserver_alive_fd is None or server._forkserver_address is None:
            ensure_running()

    return leave_running


def _death_pipe() -> int:
    """The read end of this process's death pipe; the kernel closes the write end when this process ends."""
    if _start.death_pipe is None or _start.death_pipe[0] != os.getpid():
        _start.death_pipe = (os.getpid(), *os.pipe())
        os.register_at_fork(after_in_child=_close_inherited_pipe)
    return _start.death_pipe[1]


def _close_inherited_pipe() -> None:
    """Runs in a forked child: its copy of the write end would keep the parent's other children running."""
    if _start.death_pipe is not None and _start.death_pipe[0] != os.getpid():
        for fd in _start.death_pipe[1:]:
            with suppress(OSError):
                os.close(fd)
        _start.death_pipe = None


def _restore(state: ChildState, death_pipe: Any, pipes: Any, name: str, reduced: bytes) -> process.BaseProcess:
    """Runs in the child; applies the state first, since unpickling may import and read variables."""
    begin_ns = time.monotonic_ns()
    watched = death_pipe.detach()
    arm(watched)
    os.close(watched)
    process.current_process().name = name
    stop_recording_forks()
    if _start.record is not None:
        _start.record.begin_process(name, parent_pid=state.pid)
    changed = state.apply()
    if _start.journal is not None:
        _start.journal.mark_loaded_modules()
        _start.journal.record_environment(changed)
    if pipes is not None:
        _start.pipes = ChildPipes(*(end.detach() for end in pipes))
        report_serving(_start.pipes)
    restored = restore(reduced, _start.record)
    if _start.journal is not None:
        _start.journal.add_span("take_over", begin_ns, time.monotonic_ns())
    return restored
