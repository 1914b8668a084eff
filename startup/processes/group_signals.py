"""Signals that reach whole process groups: Ctrl-C, a service manager's stop, a terminal that closes.

The API process acts on them, all others ignore them. Standard library alone.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def blocked() -> Iterator[None]:
    """Around the start of a process, which begins with these signals blocked and has time to say `ignore`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_thread(thread: threading.Thread) -> None:
    """Starts a thread that leaves these signals to the main thread for good.

    The kernel may give a signal to any thread that takes it, and a main thread that waits in a system call would go on
    waiting.
    """
    with blocked():
        thread.start()


@contextmanager
def ignored() -> Iterator[None]:
    """In a new process that does not act on them yet; it and its children will, as without this."""
    before = {number: signal.getsignal(number) for number in GROUP_SIGNALS}
    ignore()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interrupting() -> Iterator[None]:
    """Ctrl-C ends what is inside at once: a wait in a coroutine, where asyncio would keep it, or strangers' imports.

    A KeyboardInterrupt that is caught inside (some modules catch whatever an import of theirs raises) is raised again
    in the end. Only on the main thread, and where Ctrl-C is not ignored.
    """
    if threading.current_thread() is not threading.main_thread() or not callable(signal.getsignal(signal.SIGINT)):
        yield
        return
    is_interrupted = False

    def interrupt(number: int, frame: object) -> None:
        nonlocal is_interrupted
        is_interrupted = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        if _is_task_cancelled():  # by a Ctrl-C that came just before
            raise KeyboardInterrupt
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if is_interrupted:
            raise KeyboardInterrupt


def _is_task_cancelled() -> bool:
    """Whether asyncio, if it runs, has taken note of a Ctrl-C, which it would act on at the next await."""
    asyncio: Any = sys.modules.get("asyncio")
    with suppress(AttributeError, RuntimeError):  # it is not imported, or no loop runs
        return bool(asyncio.current_task().cancelling())
    return False


def ignore() -> None:
    """In the new process; what came meanwhile is dropped. Must run on its main thread."""
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
