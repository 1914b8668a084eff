"""Uses the time in which vLLM's API server waits for its engine for work that the engine does not need.

The wait itself continues on a thread, which answers the engine's messages; the work runs on the main thread.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any, Final

from startup.hooks.left_out import applies
from startup.hooks.of_vllm import ENGINE_WAIT, WAIT_FOR_ENGINE
from startup.imports.finder import after_import
from startup.processes import group_signals

_END_S: Final = 30.0
"""How long a wait may take to end after its engine was stopped."""


class EngineWait:
    """Work for the time from the start of the engine's process until the engine is ready.

    Used on the main thread. Work that is added after the wait, or if this vLLM has no such wait, runs in
    `do_work`.
    """

    def __init__(self) -> None:
        self._work: list[Callable[[], None]] = []

    def add(self, work: Callable[[], None]) -> None:
        """Work in order of addition; an error ends the start, as it does outside the wait."""
        self._work.append(work)

    def do_work(self) -> None:
        """Does what is left."""
        while self._work:
            self._work.pop(0)()

    def hook(self) -> None:
        """From now on, the work is done during vLLM's wait."""

        def replace_wait(utils: Any) -> None:
            wait = WAIT_FOR_ENGINE.get(utils)

            @functools.wraps(wait)
            def wait_and_work(*args: Any, **kwargs: Any) -> None:
                is_main = threading.current_thread() is threading.main_thread()
                if not self._work or not is_main:
                    wait(*args, **kwargs)
                    return
                waiting = _Waiting(functools.partial(wait, *args, **kwargs))
                try:
                    self.do_work()
                    waiting.join()
                except BaseException:
                    waiting.end((*args, *kwargs.values()))
                    raise

            WAIT_FOR_ENGINE.replace(utils, wait_and_work)

        if applies(ENGINE_WAIT):
            after_import(WAIT_FOR_ENGINE.module, replace_wait)


class _Waiting:
    """vLLM's wait on a thread of its own."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="vllm-engine-wait", daemon=True)
        group_signals.start_thread(self._thread)

    def join(self) -> None:
        """Waits until the engine is ready; raises what vLLM's wait raises."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def end(self, arguments: tuple[Any, ...]) -> None:
        """Stops the engine, which ends the wait: its socket must not be closed while the thread reads it."""
        if not self._thread.is_alive():
            return
        for argument in arguments:
            manager = getattr(argument, "engine_manager", None)
            if manager is not None:
                manager.shutdown()
        self._thread.join(_END_S)

    def _run(self) -> None:
        try:
            self._wait()
        except BaseException as err:  # noqa: BLE001 - raised by `join`
            self._error = err
