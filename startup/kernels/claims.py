"""Divides kernels between the processes of a start, so that no two compile the same kernel at a time."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_POLLED_EVERY_S: Final = 0.005
LONGEST_WAIT_S: Final = 30.0
"""How long an engine waits for a kernel that another process compiles. A few take 3 s on an idle core."""


class Claims:
    """A folder with a file for each kernel that a process has claimed.

    A claim is a lock of the file, which the kernel of the system releases when the process ends in any way.
    The file of a kernel that could not be compiled has the reason.
    """

    def __init__(self, folder: Path) -> None:
        """The folder is created when it is first used."""
        self._folder = folder

    @contextmanager
    def try_claim(self, key: str) -> Iterator[bool]:
        """Claims a kernel for the block, and yields True. Yields False if another process has claimed it."""
        fd = self._open(key)
        try:
            yield _lock(fd)
        finally:
            os.close(fd)

    @contextmanager
    def claimed(self, key: str) -> Iterator[float]:
        """Claims a kernel for the block once no other process compiles it. Yields the seconds of the wait.

        After 30 s, or if the folder cannot be used, the block runs without a claim.
        """
        begin_s = time.monotonic()
        try:
            fd = self._open(key)
        except OSError:
            yield 0.0
            return
        try:
            while not _lock(fd) and time.monotonic() - begin_s < LONGEST_WAIT_S:
                time.sleep(_POLLED_EVERY_S)
            yield time.monotonic() - begin_s
        finally:
            os.close(fd)

    def note_problem(self, key: str, problem: str) -> None:
        """Keeps the reason why a kernel could not be compiled."""
        with suppress(OSError):
            (self._folder / key).write_text(problem, encoding="utf-8")

    def problem(self, key: str) -> str:
        """The reason why a kernel could not be compiled. Empty if none is known."""
        with suppress(OSError):
            return (self._folder / key).read_text(encoding="utf-8")
        return ""

    def _open(self, key: str) -> int:
        self._folder.mkdir(parents=True, exist_ok=True)
        return os.open(self._folder / key, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _lock(fd: int) -> bool:
    """Locks the file, unless another process has locked it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
