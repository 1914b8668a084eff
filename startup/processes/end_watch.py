"""Detects that another process is exiting, before the kernel reports its exit. Standard library only."""

import os
from contextlib import suppress


class EndWatch:
    """Reads a process's memory size (proc(5), `statm`), which is zero once the process exits.

    The kernel frees the memory first. Only then it closes the process's files and notifies its parent and
    holders of a pidfd: a tenth of a second and more later for each GB.
    """

    def __init__(self, pid: int) -> None:
        """Created before the process is reaped; without /proc, or after that, no exit is detected."""
        self._fd: int | None = None
        with suppress(OSError):
            self._fd = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)

    def is_exiting(self) -> bool:
        """Whether the process is exiting or has exited; takes some microseconds."""
        if self._fd is None:
            return False
        try:
            return os.pread(self._fd, 2, 0) == b"0 "
        except ProcessLookupError:  # it has exited and was reaped
            return True

    def close(self) -> None:
        """Stops the detection; may be called again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
