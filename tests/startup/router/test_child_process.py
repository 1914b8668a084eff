"""A process that ends with the one that starts it."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import NoReturn

import pytest

from startup.router.child_process import ChildProcess, describe_end
from tests.waiting import wait_until

_ROUNDS = 20


@pytest.fixture
def told() -> Iterator[socket.socket]:
    """What an event loop of this process would be told of its signals."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        handler = signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(theirs.fileno())
        yield ours
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, handler)


def sleep() -> NoReturn:
    os.execv(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(600)"])


def end_of(process: ChildProcess) -> int:
    codes: list[int] = []
    wait_until(lambda: (code := process.poll()) is not None and not codes.append(code))
    return codes[0]


def test_a_signal_to_a_new_process_ends_it_and_is_not_taken_for_one_of_its_parent(told):
    for _ in range(_ROUNDS):
        process = ChildProcess.fork(sleep)
        assert os.getpgid(process.pid) == process.pid
        process.signal(signal.SIGTERM)
        assert end_of(process) == -signal.SIGTERM
    with pytest.raises(BlockingIOError):
        told.recv(1)


@pytest.mark.parametrize(
    ("code", "text"), [(3, "The server ended with exit code 3"), (-9, "The server was ended by SIGKILL")]
)
def test_an_end_is_described(code, text):
    assert describe_end(code) == text
