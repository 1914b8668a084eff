"""Starts the engine process."""

import logging
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.context import BaseContext
from typing import Final

from base.errors import EngineStartError
from server.terms.config import EngineConfig, ModelFiles
from startup.embedded import engine_process
from startup.embedded.engine_process import EngineProcess
from startup.logs.options import LogOptions
from startup.processes import forkserver, group_signals
from startup.processes.forkserver import ForkError
from startup.reports.crash.output_record import OutputRecord, ProcessEnds

logger = logging.getLogger(__name__)

_KILL_AGAIN_S: Final = 0.1
_SWITCH_S: Final = 0.0002
"""Seconds that the main thread may hold the interpreter lock while another thread starts the engine. That
thread needs the lock after each system call. With Python's default of 5 ms, its request takes up to 20 ms."""


class EngineStarter:
    """Starts and stops the engine process, on the main thread."""

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
        self._context = context
        self._files = files
        self._config = config
        self._logs = logs
        self._record = record
        self._starting: BackgroundStart | None = None
        self._started: EngineProcess | None = None
        if engine_process.blocks_on_imports(context):
            self._starting = BackgroundStart(self._start)
        else:
            self._started = self._start()

    def wait_started(self) -> EngineProcess:
        """Waits until the forkserver, if there is one, has finished its imports and forked the process.

        Raises:
            EngineStartError: the process could not be started.
        """
        if self._starting is not None:
            try:
                self._started = self._starting.wait()
            except EngineStartError as err:
                if not isinstance(err.__cause__, ForkError):
                    raise
                self._started = self._start()  # a new program, which the kernel would end with that thread
            self._starting = None
        assert self._started is not None
        return self._started

    def record_end(self) -> None:
        """Adds the stack of a crashed engine process to the record."""
        if self._started is not None and self._started.pid is not None:
            code = self._started.exitcode
            if code is not None and code < 0 and -code != signal.SIGKILL:
                ProcessEnds(self._record).add(self._started.pid, code)

    def close(self) -> None:
        """Stops the process, even if it has not been started yet."""
        if self._starting is not None:
            self._started = self._starting.abandon()
            self._starting = None
        if self._started is not None:
            self._started.close()

    def _start(self) -> EngineProcess:
        try:
            return engine_process.start_engine(
                self._context, self._files(), self._config, logs=self._logs, record=self._record
            )
        except OSError as err:
            raise EngineStartError(f"the engine process could not be started: {err}") from err


class BackgroundStart:
    """Starts the engine in a thread, because a forkserver forks only after its imports.

    The object is used only on the thread that has created it.
    """

    def __init__(self, start: Callable[[], EngineProcess]) -> None:
        self._start = start
        self._process: EngineProcess | None = None
        self._error: Exception | None = None
        self._switch_s = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_S)
        self._thread = threading.Thread(target=self._run, name="engine-start", daemon=True)
        group_signals.start_thread(self._thread)

    def wait(self) -> EngineProcess:
        """Waits for the process. Raises any error of `start`."""
        self._join()
        if self._error is not None:
            raise self._error
        assert self._process is not None
        return self._process

    def abandon(self) -> EngineProcess | None:
        """Kills a forkserver that has not forked yet, to end the wait. Returns the process if it exists."""
        while self._thread.is_alive():
            forkserver.kill()
            self._thread.join(_KILL_AGAIN_S)
        self._join()
        return self._process

    def _join(self) -> None:
        self._thread.join()
        sys.setswitchinterval(self._switch_s)

    def _run(self) -> None:
        try:
            self._process = self._start()
        except Exception as err:  # noqa: BLE001 - `wait` raises it
            self._error = err
