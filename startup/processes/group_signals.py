"""Signals that reach whole process groups: Ctrl-C, a service manager's stop, a terminal that closes.

The API process acts on them, all others ignore them. Standard library alone.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def held_back() -> Iterator[None]:
    """Around the start of a process, which begins with these signals blocked and has time to say `ignore`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
    """Around a wait within a coroutine, where asyncio would keep a first Ctrl-C until its loop goes on."""
    if threading.current_thread() is not threading.main_thread() or not callable(signal.getsignal(signal.SIGINT)):
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def ignore() -> None:
    """In the new process; what came meanwhile is dropped. Must run on its main thread."""
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
