"""Waits for the effects of processes and threads."""

import socket
import time
from collections.abc import Callable

import psutil


def wait_until(is_true: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Polls the condition every 10 ms. Fails after a time-out that is far longer than any machine needs."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Whether a process has exited. A zombie counts as exited."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_listening(port: int) -> None:
    """Waits until the port accepts connections, even if no server answers on them."""

    def is_listening() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(is_listening)
