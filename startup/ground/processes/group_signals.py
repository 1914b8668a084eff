"""Signals that whole process groups get: Ctrl-C, Ctrl-\\, a service manager's stop, a closed terminal.

The API process acts on them, all others ignore them. Standard library only.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

GROUP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
set_handler: Final = signal.signal
"""Also while `startup.ground.processes.stop_signals` replaces it."""


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


class _EndedError(BaseException):
    """Raised by a signal in a block of `cleaning_up`."""


@contextmanager
def cleaning_up() -> Iterator[None]:
    """Lets the signals leave the block by an exception, before they have their usual effect.

    No effect outside the main thread, on Ctrl-C where it raises one already, and on signals that are ignored.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in GROUP_SIGNALS if is_main}
    numbers = [n for n, handler in before.items() if handler not in (signal.SIG_IGN, signal.default_int_handler)]
    received: list[int] = []
    is_cleaning = False

    def leave(number: int, frame: object) -> None:
        received.append(number)
        if len(received) == 1 and not is_cleaning:
            raise _EndedError

    try:
        for number in numbers:
            set_handler(number, leave)
        try:
            yield
        finally:
            is_cleaning = True
    finally:
        for number in numbers:
            set_handler(number, before[number])
        if received:
            os.kill(os.getpid(), received[0])


def leave_ctrl_c_to_parent() -> None:
    """Ctrl-C does nothing here, nor in processes forked from this one until they set a handler.

    Programs that they start are interrupted as usual, as they inherit no handler.
    """
    signal.signal(signal.SIGINT, lambda number, frame: None)


def ignore() -> None:
    """Ignores the signals and drops pending ones; called in a new process on its main thread."""
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
