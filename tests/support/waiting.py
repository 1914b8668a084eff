"""Waits for the effects of processes and threads. Ends servers, suspends a process, and reads its signals."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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


GONE_S = 60.0


def end_server(
    process: "subprocess.Popen[bytes]", family: Iterable[psutil.Process], *, left_s: float = GONE_S
) -> list[psutil.Process]:
    """Terminates the process, or kills it after a time-out. Returns the other processes that it had to kill.

    Args:
        process: the server's main process, which may have exited.
        family: the process tree as it was while the server ran.
        left_s: how long the other processes may run after the main process has exited.
    """
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(GONE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    family = [*family]
    deadline = time.monotonic() + left_s
    while (left := running(family)) and time.monotonic() < deadline:
        time.sleep(0.01)
    for other in left:
        with suppress(psutil.NoSuchProcess):
            other.kill()
    return left


def running(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and not is_gone(process.pid)]


def assert_gone(family: Iterable[psutil.Process]) -> None:
    family = [*family]
    wait_until(lambda: not running(family), GONE_S)


def has_death_pipe(process: psutil.Process) -> bool:
    """Whether a pipe sends a signal to the process (proc(5), `fdinfo`), so that it ends with its server."""
    with suppress(OSError):  # the process exits
        for file in Path(f"/proc/{process.pid}/fdinfo").iterdir():
            flags = [line.split()[1] for line in _flags(file)]
            if any(int(octal, 8) & os.O_ASYNC for octal in flags):
                return True
    return False


def shared_memory(family: Iterable[psutil.Process]) -> set[Path]:
    """The segments of `multiprocessing.shared_memory` that these processes use."""
    found = set()
    for process in family:
        with suppress(OSError):  # it has ended since
            lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
            names = (line.split()[-1] for line in lines)
            found |= {Path(name) for name in names if name.startswith("/dev/shm/psm_")}
    return found


def disturbing(status: str, signals: Iterable[signal.Signals]) -> set[signal.Signals]:
    """The signals that the process neither blocks nor ignores, from its `/proc/PID/status` (proc(5))."""
    fields = dict(line.split(":", 1) for line in status.splitlines())
    quiet = int(fields["SigBlk"], 16) | int(fields["SigIgn"], 16)
    return {number for number in signals if not quiet >> (number - 1) & 1}


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stops the process by a signal, and resumes it after the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _flags(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text().splitlines() if line.startswith("flags:")]
    except FileNotFoundError:  # the file was closed meanwhile
        return []
