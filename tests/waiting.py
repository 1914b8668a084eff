"""Waiting for what another process or thread does in its own time."""

import socket
import time
from collections.abc import Callable

import psutil


def wait_until(is_true: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Looks again and again; fails where nothing has come of it after a time that no machine needs."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, though perhaps nobody has asked how."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_listening(port: int, host: str = "127.0.0.1") -> None:
    """Waits until connections to the port are taken, whether or not anybody answers."""

    def is_listening() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((host, port)) == 0

    wait_until(is_listening)
