"""Starts the engine process in a thread, because a forkserver forks only after its imports."""

import sys
import threading
from collections.abc import Callable
from typing import Final

from startup.engine.process import EngineProcess, kill_forkserver
from startup.processes import group_signals

_KILL_AGAIN_S: Final = 0.1
_SWITCH_S: Final = 0.0002
"""How long the main thread may keep the interpreter lock from the new thread, which needs it again after each
system call: with Python's 5 ms, the request to the forkserver takes up to 20 ms."""


class BackgroundStart:
    """One start; used by the thread that created it."""

    def __init__(self, start: Callable[[], EngineProcess]) -> None:
        """Runs `start` in the new thread."""
        self._start = start
        self._process: EngineProcess | None = None
        self._error: Exception | None = None
        self._switch_s = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_S)
        self._thread = threading.Thread(target=self._run, name="engine-start", daemon=True)
        group_signals.start_thread(self._thread)

    def wait(self) -> EngineProcess:
        """Waits for the process; raises what `start` raised."""
        self._join()
        if self._error is not None:
            raise self._error
        assert self._process is not None
        return self._process

    def abandon(self) -> EngineProcess | None:
        """Ends the wait for a forkserver that has not forked yet; returns the process if there is one."""
        while self._thread.is_alive():  # again, if multiprocessing has just replaced a forkserver that had ended
            kill_forkserver()
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
