"""Sees that another process has begun to end, well before anybody is told that it has. Standard library alone."""

import os
from contextlib import suppress


class EndWatch:
    """Looks at a process's memory, which the kernel takes from it first of all.

    It closes the process's files and tells its parent, and whoever has a pidfd, only once that memory is freed: a tenth
    of a second and more for each GB. Whoever would rather know at once has to look (proc(5), `statm`).
    """

    def __init__(self, pid: int) -> None:
        """To be made before anybody waits for the process; without /proc, or if it has gone, nothing is seen."""
        self._fd: int | None = None
        with suppress(OSError):
            self._fd = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)

    def is_exiting(self) -> bool:
        """Whether the end has begun; takes some microseconds."""
        if self._fd is None:
            return False
        try:
            return os.pread(self._fd, 2, 0) == b"0 "
        except ProcessLookupError:  # it has ended, and somebody has waited for it
            return True

    def close(self) -> None:
        """Nobody looks any more."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
