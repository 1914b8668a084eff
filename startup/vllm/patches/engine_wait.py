"""Does work on the main thread while vLLM's API server waits for its engine."""

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from startup.hook import Hook, Name
from startup.imports.finder import wrap_after_import
from startup.processes import group_signals

_WAIT_FOR_ENGINE: Final = Name("vllm.v1.engine.utils", "wait_for_engine_startup")
ENGINE_WAIT: Final = Hook(
    "wait for the engine",
    does="imports the rest of the API server, and creates the renderer with its tokenizer, during the wait",
    without="the API server does this before or after the wait",
    gain_in=("CPU, eager, later", "stand-in, compiled, later"),
    needs=(_WAIT_FOR_ENGINE,),
)

_END_S: Final = 30.0
"""Seconds in which vLLM's wait must end after the engine was stopped."""


class EngineWait:
    """A queue of work that is done from the start of the engine's process until the engine is ready.

    Used on the main thread. If vLLM does not wait for its engine, the work is not done.
    """

    def __init__(self) -> None:
        self._work: list[Callable[[], None]] = []
        self._waiting: Future[None] = Future()
        """vLLM's wait, which runs on a thread of its own."""

    def add(self, work: Callable[[], None]) -> None:
        """Adds work to the end of the queue. An error in the work ends the start."""
        self._work.append(work)

    @property
    def has_failed(self) -> bool:
        """Whether the engine has failed during the work. The remaining work is then useless."""
        return self._waiting.done() and self._waiting.exception() is not None

    def hook(self) -> None:
        """From now on, the main thread does the work while vLLM waits for its engine."""
        if ENGINE_WAIT.applies:
            wrap_after_import(_WAIT_FOR_ENGINE, self._with_work, ENGINE_WAIT)

    def _with_work(self, wait: Callable[..., None]) -> Callable[..., None]:
        def wait_and_work(*args: Any, **kwargs: Any) -> None:
            is_main = threading.current_thread() is threading.main_thread()
            if not self._work or not is_main:
                wait(*args, **kwargs)
                return
            waiting = self._waiting = Future()
            begin = functools.partial(wait, *args, **kwargs)
            thread = group_signals.start_thread("vllm-engine-wait", _run, waiting, begin)
            try:
                while self._work and not self.has_failed:
                    self._work.pop(0)()
                thread.join()
                waiting.result()
            except BaseException:
                _end(thread, (*args, *kwargs.values()))
                raise

        return wait_and_work


def _run(waiting: Future[Any], wait: Callable[[], Any]) -> None:
    try:
        waiting.set_result(wait())
    except BaseException as err:  # noqa: BLE001 - raised by the main thread
        waiting.set_exception(err)


def _end(thread: threading.Thread, arguments: tuple[Any, ...]) -> None:
    """Ends the thread by stopping the engine. A socket must not be closed while a thread reads it."""
    if not thread.is_alive():
        return
    for argument in arguments:
        manager = getattr(argument, "engine_manager", None)
        if manager is not None:
            manager.shutdown()
    thread.join(_END_S)
