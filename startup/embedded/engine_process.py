"""Starts the engine process with the chosen start method, and stops it."""

import logging
import multiprocessing
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

from base.errors import EngineStartError
from base.machine.memory import OomWatch
from base.machine.processes import EndWatch, process_start_ns
from base.wording import signal_name
from envs.environment import overlaid
from envs.registry import env
from server.terms.config import EngineConfig, ModelFiles
from startup.files.model.checkpoint_folder import modeling_module
from startup.imports.heavy import import_engine
from startup.imports.torch_environment import set_torch_variables
from startup.logs.options import LogFormat, LogOptions
from startup.logs.setup import configure_logging
from startup.processes import death_pipe, forkserver, group_signals
from startup.processes.forkserver import ForkError
from startup.processes.new_program import without_group_signals, without_main_module
from startup.reports.crash.output_record import IN_MAPPED_FILE, OutputRecord, ProcessEnds

logger = logging.getLogger(__name__)

PRELOAD_MODULE = "startup.embedded.preload"
_KILL_AFTER_S: Final = 5.0
_KILL_AGAIN_S: Final = 0.1
_SWITCH_S: Final = 0.0002
"""Seconds that the main thread may hold the interpreter lock while another thread starts the engine. That
thread needs the lock after each system call. With Python's default of 5 ms, its request takes up to 20 ms."""
_STANDARD_FDS: Final = (0, 1, 2)


class EngineProcess:
    """The engine process (`server.operation.engine_monitor.EngineHandle`). `connection` is a socket to it."""

    def __init__(self, process: BaseProcess, connection: socket.socket) -> None:
        self._process = process
        self._end_watch = EndWatch(process.pid or 0)
        self._oom_watch = OomWatch()
        self.connection = connection

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def exitcode(self) -> int | None:
        return self._process.exitcode

    def is_exiting(self) -> bool:
        """Whether the process is exiting, even if its socket is not closed yet."""
        return self._end_watch.is_exiting()

    def describe_end(self) -> str | None:
        """How the process was killed, or lost with its forkserver. None if it runs or exited by itself."""
        code = self.exitcode
        if code == forkserver.LOST:
            how = ", and the forkserver does not answer" if forkserver.is_running() else " with the forkserver"
            return f"its process {self.pid} ended{how}"
        if code is None or code >= 0:
            return None
        hint = self._oom_watch.describe_kill() if -code == signal.SIGKILL else ""
        hint = IN_MAPPED_FILE if -code == signal.SIGBUS else hint
        return f"its process {self.pid} was killed by {signal_name(-code)}{hint}"

    def close(self) -> None:
        """Closes the socket, waits for the process to exit, and kills it after a timeout."""
        self.connection.close()
        self._process.join(_KILL_AFTER_S)
        if self._process.is_alive() and not self.is_exiting():
            logger.warning("the engine process %s did not end in %g s and is killed", self.pid, _KILL_AFTER_S)
            self._process.kill()
            self._process.join(_KILL_AFTER_S)
        self._end_watch.close()


class EngineStarter:
    """Starts and stops the engine process. Used on the main thread."""

    def __init__(
        self,
        context: BaseContext,
        files: Callable[[], ModelFiles],
        config: EngineConfig,
        logs: LogOptions,
        record: OutputRecord,
    ) -> None:
        """Begins the first start. Until `wait_started` has returned, only `close` may be called.

        Raises:
            EngineStartError: the process could not be started.
        """
        self._record = record
        self._begin: Callable[[], EngineProcess] = lambda: start_engine(
            context, files(), config, logs=logs, record=record
        )
        self._process: EngineProcess | None = None
        self._error: Exception | None = None
        self._thread = None
        self._switch_s = sys.getswitchinterval()
        if blocks_on_imports(context):
            sys.setswitchinterval(_SWITCH_S)
            self._thread = group_signals.start_thread("engine-start", self._run)
        else:
            self._process = self._start()

    def wait_started(self) -> EngineProcess:
        """Waits until the forkserver, if there is one, has finished its imports and forked the process.

        Raises:
            EngineStartError: the process could not be started.
        """
        self._join()
        if self._error is not None:
            if not isinstance(self._error.__cause__, ForkError):
                raise self._error
            self._process = self._start()  # a new program, which the kernel would end with that thread
        assert self._process is not None
        return self._process

    def record_end(self) -> None:
        """Adds the stack of a crashed engine process to the record."""
        if self._process is not None and self._process.pid is not None:
            code = self._process.exitcode
            if code is not None and code < 0 and -code != signal.SIGKILL:
                ProcessEnds(self._record).add(self._process.pid, code)

    def close(self) -> None:
        """Stops the process. If a forkserver has not forked it yet, kills the forkserver to end the wait."""
        while self._thread is not None and self._thread.is_alive():
            forkserver.kill()
            self._thread.join(_KILL_AGAIN_S)
        self._join()
        if self._process is not None:
            self._process.close()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            sys.setswitchinterval(self._switch_s)

    def _start(self) -> EngineProcess:
        try:
            return self._begin()
        except OSError as err:
            raise EngineStartError(f"the engine process could not be started: {err}") from err

    def _run(self) -> None:
        try:
            self._process = self._start()
        except Exception as err:  # noqa: BLE001 - `wait_started` raises it
            self._error = err


def prepare(context: BaseContext, files: ModelFiles | None, log_format: LogFormat) -> None:
    """Starts the engine's imports early, in the forkserver or, with `fork`, in this process.

    A forkserver also imports the model's class if the model's files are on disk.
    """
    set_torch_variables()
    method = context.get_start_method()
    if method == "forkserver":
        settings: dict[str, str] = {env.VCLI_LOG_FORMAT.name: log_format}
        if files is not None and (module := modeling_module(files.path)):
            settings[env.VCLI_PRELOAD_MODULE.name] = module
        try:
            with overlaid(settings):
                forkserver.ensure_forkserver(PRELOAD_MODULE)
        except OSError as err:
            logger.warning("the forkserver cannot be started (%s): the engine is a new program", err)
    elif method == "fork":
        import_engine()


def blocks_on_imports(context: BaseContext) -> bool:
    """Whether `start_engine` waits for imports. A forkserver forks only after its imports (CPython #157216).

    If it waits, call it in a thread, so that this process can do its own imports at the same time.
    """
    return context.get_start_method() == "forkserver"


def start_engine(
    context: BaseContext,
    files: ModelFiles,
    config: EngineConfig,
    *,
    logs: LogOptions,
    record: OutputRecord,
) -> EngineProcess:
    """Starts the process, which loads the model at once and reports over the socket when the model is loaded.

    Unless a forkserver forks, call this on the main thread, because the process ends with the calling thread.
    """
    ours, theirs = socket.socketpair()
    method = context.get_start_method()
    is_fork = method == "fork"
    process = context.Process(  # type: ignore[attr-defined]
        target=_main,
        name="vllm-cli-engine",
        args=(theirs, files, config, logs, str(record.folder), is_fork),
        daemon=True,
    )
    with (
        theirs,
        without_main_module(),
        group_signals.blocked() if is_fork else without_group_signals(),
    ):
        process.start()
    return EngineProcess(process, ours)


def _main(  # noqa: PLR0913 - all that the new process needs
    connection: socket.socket,
    files: ModelFiles,
    config: EngineConfig,
    logs: LogOptions,
    record_folder: str,
    is_fork: bool,
) -> None:
    """Runs in the engine process, on its main thread."""
    group_signals.ignore()
    api_process = multiprocessing.parent_process()
    assert api_process is not None
    assert api_process.pid is not None
    death_pipe.arm(api_process.sentinel)
    preload = sys.modules.get(PRELOAD_MODULE)
    if preload is None:  # otherwise the kernel ends this fork with its forkserver
        death_pipe.follow_parent(api_process.pid)
    OutputRecord(Path(record_folder)).begin_process("engine")
    if is_fork:
        _close_other_sockets(connection)
    from server.engine.engine_process import run_engine
    from server.engine.phases import Phases

    phases = Phases()
    configure_logging(logs, role="engine", phase=lambda: phases.current)
    phases.spans.append(("start_process", process_start_ns(), time.monotonic_ns()))
    if preload is not None:
        phases.spans += preload.SPANS
        left_out = preload.LEFT_OUT
    else:
        with phases.span("import_torch_and_transformers"):
            left_out = import_engine()
    run_engine(connection, files, config, phases, imports=left_out)


def _close_other_sockets(keep: socket.socket) -> None:
    """Closes the sockets that a forked process has inherited, such as the listener and clients' sockets."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        fd = int(entry.name)
        try:
            is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
        except OSError:
            continue
        if is_socket and fd not in (keep.fileno(), *_STANDARD_FDS):
            os.close(fd)


def use_start_method(wanted: str) -> BaseContext:
    """Sets the start method of this process, whatever a library has set. Returns the method's context."""
    multiprocessing.set_start_method(wanted, force=True)
    return multiprocessing.get_context(wanted)
