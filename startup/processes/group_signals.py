"""Signals that whole process groups get: Ctrl-C, Ctrl-\\, a service manager's stop, a closed terminal.

The API process handles these group signals. All other processes of the server ignore them. This module
imports only the standard library.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

GROUP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
set_handler: Final = signal.signal
"""The original `signal.signal`, even while `startup.processes.stop_signals` replaces it."""


@contextmanager
def blocked() -> Iterator[None]:
    """Blocks the group signals. Processes started in the block keep them blocked until they call `ignore`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_thread(name: str, target: Callable[..., object], *args: object) -> threading.Thread:
    """Starts a daemon thread that never receives group signals.

    Otherwise, a signal could go to this thread and would not interrupt a system call of the main thread.
    """
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)
    with blocked():
        thread.start()
    return thread


@contextmanager
def ignored() -> Iterator[None]:
    """Ignores the group signals during the block, in a new process that cannot handle them yet."""
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
    """Turns a group signal into an exception that leaves the block. Then the signal has its usual effect.

    Does nothing outside the main thread, for ignored signals, and for Ctrl-C if it raises KeyboardInterrupt.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in GROUP_SIGNALS if is_main}
    left_alone = (signal.SIG_IGN, signal.default_int_handler)
    numbers = [number for number, handler in before.items() if handler not in left_alone]
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

    Ctrl-C still interrupts programs that these processes start, because programs do not inherit the handler.
    """
    signal.signal(signal.SIGINT, lambda number, frame: None)


def ignore() -> None:
    """Ignores the group signals and drops pending ones. Called on the main thread of a new process."""
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
