"""Ends a start after a signal: all its processes end within a second, and no files are left behind.

The processes are killed, because an orderly shutdown takes too long: an engine that loads its model does not
respond, and vLLM would wait for it. This module imports no third-party package.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Self

from base.exit_codes import INTERRUPTED
from base.machine.command_line import replace_command_line
from base.machine.processes import KILL_S, child_pids, kill_descendants
from base.server_settings import SAME_SIGNAL_S
from startup.processes import group_signals, new_program
from startup.processes.group_signals import GROUP_SIGNALS, set_handler
from startup.processes.quick_end import end_like, flush_output

_WATCH_COMMAND_LINE: Final = b"vllm-cli end watch\0"
_MOST_FDS: Final = 1 << 16
_WATCH_ROUNDS: Final = 3
_WATCH_PAUSE_S: Final = 0.05
_POLLED_EVERY_S: Final = 0.05
_LAST_ANSWERS_S: Final = 0.4
"""Seconds for clients to receive an error after the second signal."""


class StopSignals:
    """Handles the group signals of the API process from `__enter__` until `release`.

    Handlers that other code (vLLM, asyncio) sets meanwhile take effect after `release`. Signals that are
    ignored stay ignored. `__enter__` must run on the main thread.
    """

    def __init__(self, on_stop: Callable[[str], None]) -> None:
        """`on_stop` is called with the signal's name on the main thread, where it may interrupt any code."""
        self.mark: str | None = None
        """An environment variable, `NAME=value`, that all programs of this start have."""
        self.before_end: Callable[[], None] = lambda: None
        """Called on another thread before a second signal ends this process."""
        self._on_stop = on_stop
        self._owner_pid = os.getpid()
        self._inherited = set(child_pids(self._owner_pid)) - {new_program.dormant_pid()}
        """Children that a shell started before it became this program: `exec vllm-cli serve > >(tee log)`."""
        self._others: dict[int, Any] = {}
        """Handlers that other code has set, by signal."""
        self._is_released = False
        self.first_s: float | None = None
        """When the first signal came that this object has passed on, in monotonic seconds."""
        self._is_ending = threading.Lock()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self.take()
            signal.signal = self._keep_handler  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()

    def take(self) -> None:
        """Sets this object's handlers, even where compiled code has set others without `signal.signal`."""
        for number in GROUP_SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, self._handle):
                self._others[number] = set_handler(number, self._handle)

    def release(self) -> None:
        """Lets the handlers of other code handle the signals, because the server is ready.

        Any thread may call this method. Python can set the other handlers only on the main thread. After a
        call on another thread, this object's handler passes the signals on to them.
        """
        self._is_released = True
        if threading.current_thread() is threading.main_thread():
            self._give_back()

    def kill_all(self, timeout_s: float = KILL_S) -> None:
        """Kills all other processes of this start, and removes this process's temporary folders.

        Returns once the processes have ended, or after the timeout. Does nothing in a fork of this process.
        multiprocessing's resource tracker is not killed: it removes shared memory and ends with this process.
        """
        import shutil  # noqa: PLC0415 - at the top, they would delay each start
        from multiprocessing import resource_tracker  # noqa: PLC0415

        if os.getpid() != self._owner_pid:
            return
        tracker = resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]
        kill_descendants(spared={tracker, *self._inherited}, mark=self.mark, timeout_s=timeout_s)
        for folder in _temp_folders():
            shutil.rmtree(folder, ignore_errors=True)

    def wait_for(self, event: threading.Event, *, begin_s: float, limit_s: float) -> str:
        """Waits for the event until `limit_s` after the stop's beginning `begin_s` (in monotonic seconds).

        Called on the main thread, once vLLM and its event loop handle no signals any more.

        Returns:
            Why the wait has ended before the event: a second signal, or the time. Empty if the event is set.
        """
        again: list[str] = []

        def note(number: int, frame: Any) -> None:
            if time.monotonic() - begin_s >= SAME_SIGNAL_S:
                again.append(signal.Signals(number).name)

        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                set_handler(number, note)
        while not event.wait(_POLLED_EVERY_S):
            if again:
                return f"{again[0]} came while the server stopped"
            if time.monotonic() - begin_s >= limit_s:
                return f"the server must stop within {limit_s:g} s"
        return ""

    def end_soon(self) -> None:
        """Ends this process with exit code 0 after a second signal. First lets clients receive an error."""
        if self._is_ending.acquire(blocking=False):
            timer = threading.Timer(_LAST_ANSWERS_S, self._end)
            timer.daemon = True
            timer.start()

    def _end(self) -> None:
        self.before_end()
        self.kill_all()
        flush_output()
        os._exit(0)

    def _handle(self, number: int, frame: Any) -> None:
        if self._is_released or os.getpid() != self._owner_pid:
            self._pass_on(number, frame)
            return
        signal.signal = set_handler
        for other in GROUP_SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        self._on_stop(signal.Signals(number).name)
        self.kill_all()
        flush_output()
        if number == signal.SIGINT:
            os._exit(INTERRUPTED)
        end_like(-number)

    def _pass_on(self, number: int, frame: Any) -> None:
        now_s = time.monotonic()
        if self.first_s is None:
            self.first_s = now_s
        elif now_s - self.first_s >= SAME_SIGNAL_S and os.getpid() == self._owner_pid:
            self.end_soon()
        handler = self._others.get(number, signal.SIG_DFL)
        if callable(handler):
            handler(number, frame)
        elif handler == signal.SIG_DFL:
            signal.signal = set_handler
            end_like(-number)

    def _give_back(self) -> None:
        signal.signal = set_handler
        for number, handler in self._others.items():
            if signal.getsignal(number) == self._handle:
                set_handler(number, handler)

    def _keep_handler(self, number: int, handler: Any) -> Any:
        """Replaces `signal.signal`. If this object handles the signal, keeps the new handler for later."""
        if number not in self._others or os.getpid() != self._owner_pid:
            return set_handler(number, handler)
        before, self._others[number] = self._others[number], handler
        return before


def end_with_this_process(mark: str) -> None:
    """Forks a process that kills all programs with the variable `mark` once this process has ended.

    A death pipe ends only forks. Programs that an engine has started (compilers, checks of an import) would
    outlive a killed launcher. `mark` has the form `NAME=value`. This process must have only one thread.
    """
    parent_pid = os.getpid()
    with group_signals.blocked():
        if os.fork() != 0:
            return
        group_signals.ignore()
        with suppress(OSError):  # an old kernel
            replace_command_line(_WATCH_COMMAND_LINE)
            pidfd = os.pidfd_open(parent_pid)
            os.closerange(0, pidfd)  # who waits for the end of an output or a lock must wait for the launcher only
            os.closerange(pidfd + 1, _MOST_FDS)
            if os.getppid() == parent_pid:
                select.select([pidfd], [], [])
            for _ in range(_WATCH_ROUNDS):  # an engine that is ending may start one meanwhile
                kill_descendants(mark=mark)
                time.sleep(_WATCH_PAUSE_S)
        os._exit(0)


def _temp_folders() -> list[str]:
    """Temporary folders of multiprocessing and `tempfile` that this process would remove at a normal exit."""
    import weakref  # noqa: PLC0415 - as above
    from multiprocessing import process  # noqa: PLC0415
    from tempfile import TemporaryDirectory  # noqa: PLC0415

    own = process.current_process()._config.get("tempdir")  # type: ignore[attr-defined]
    clean_up = TemporaryDirectory._cleanup  # type: ignore[attr-defined]
    finalizers = weakref.finalize._registry.values()  # type: ignore[attr-defined]
    others = [str(info.args[0]) for info in finalizers if info.func == clean_up]
    return [*others, own] if own else others
