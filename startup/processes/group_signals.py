"""Signals that reach whole process groups: Ctrl-C, a service manager's stop, a terminal that closes.

The API process acts on them, all others ignore them. Standard library alone.
"""

import signal
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


def ignore() -> None:
    """In the new process; what came meanwhile is dropped. Must run on its main thread."""
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
