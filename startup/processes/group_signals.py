"""Signals that are sent to whole process groups: Ctrl-C, a service manager's stop, a closed terminal.

The API process acts on them, all others ignore them. Standard library only.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def blocked() -> Iterator[None]:
    """Blocks the signals; a process started meanwhile has them blocked until it calls `ignore`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_thread(thread: threading.Thread) -> None:
    """Starts a thread that never receives these signals.

    The kernel may deliver a signal to any thread that does not block it. A main thread that waits in a system
    call would then not be interrupted.
    """
    with blocked():
        thread.start()


@contextmanager
def ignored() -> Iterator[None]:
    """Ignores the signals in a new process that cannot act on them yet; restores the handlers at the end."""
    before = {number: signal.getsignal(number) for number in GROUP_SIGNALS}
    ignore()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interrupting() -> Iterator[None]:
    """Makes Ctrl-C interrupt the block at once: an import, or a wait in a coroutine, which asyncio delays.

    A KeyboardInterrupt that is caught in the block (some modules catch every error of an import) is raised
    again at the end. No effect outside the main thread, or if Ctrl-C is ignored.
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
        if _is_task_cancelled():  # by a Ctrl-C just before the block
            raise KeyboardInterrupt
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if is_interrupted:
            raise KeyboardInterrupt


class _EndedError(BaseException):
    """Raised by a signal in a block of `cleaning_up`."""


@contextmanager
def cleaning_up() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP leave the block by an exception, as Ctrl-C does, before they end the process.

    No effect outside the main thread, and on signals that are ignored or handled already.
    """
    is_main = threading.current_thread() is threading.main_thread()
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if is_main and signal.getsignal(n) == signal.SIG_DFL]
    received: list[int] = []
    is_cleaning = False

    def leave(number: int, frame: object) -> None:
        received.append(number)
        if len(received) == 1 and not is_cleaning:
            raise _EndedError

    try:
        for number in numbers:
            signal.signal(number, leave)
        try:
            yield
        finally:
            is_cleaning = True
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        if received:
            os.kill(os.getpid(), received[0])


def _is_task_cancelled() -> bool:
    """Whether asyncio runs and has received a Ctrl-C, on which it would act at the next await."""
    asyncio: Any = sys.modules.get("asyncio")
    with suppress(AttributeError, RuntimeError):  # it is not imported, or no loop runs
        return bool(asyncio.current_task().cancelling())
    return False


def ignore() -> None:
    """Ignores the signals and drops pending ones; called in a new process on its main thread."""
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
