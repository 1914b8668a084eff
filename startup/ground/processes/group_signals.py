"""Signals that whole process groups get: Ctrl-C, Ctrl-\\, a service manager's stop, a closed terminal.

The API process acts on them. All other processes ignore them. Standard library only.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

GROUP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
set_handler: Final = signal.signal
"""The original `signal.signal`, even while `startup.ground.processes.stop_signals` replaces it."""


@contextmanager
def blocked() -> Iterator[None]:
    """Blocks the signals. In a process started meanwhile, they stay blocked until it calls `ignore`."""
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
    """Ignores the signals during the block, in a new process that cannot act on them yet."""
    before = {number: signal.getsignal(number) for number in GROUP_SIGNALS}
    ignore()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _EndedError(BaseException):
    """Raised by a signal inside `cleaning_up`."""


@contextmanager
def cleaning_up() -> Iterator[None]:
    """Turns a signal into an exception that leaves the block. Afterwards, the signal has its usual effect.

    Does nothing outside the main thread. Does not change ignored signals, or Ctrl-C if it raises
    KeyboardInterrupt anyway.
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
    """Makes Ctrl-C do nothing in this process, and in its forks until they set a handler.

    Programs that these processes start do not inherit the handler, so Ctrl-C interrupts the programs as
    usual.
    """
    signal.signal(signal.SIGINT, lambda number, frame: None)


def ignore() -> None:
    """Ignores the signals and drops pending ones. Called on the main thread of a new process."""
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
