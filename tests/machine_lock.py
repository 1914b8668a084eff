"""A lock on the machine: a test that must run alone waits for the tests of pytest-xdist's other workers."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

_WORKER = "PYTEST_XDIST_WORKER"


def worker_number() -> int:
    """The number of this pytest-xdist worker, from 0; 0 without pytest-xdist."""
    return int(os.environ.get(_WORKER, "gw0").removeprefix("gw"))


def machine_lock(folder: Path, *, is_exclusive: bool) -> AbstractContextManager[None]:
    """Waits until a test may run, beside other tests or exclusively. Does nothing without pytest-xdist.

    Args:
        folder: for the lock files; the same one in all workers.
        is_exclusive: no other worker runs a test meanwhile.
    """
    if _WORKER not in os.environ:
        return nullcontext()
    return _held(folder, fcntl.LOCK_EX if is_exclusive else fcntl.LOCK_SH)


@contextmanager
def _held(folder: Path, kind: int) -> Iterator[None]:
    with (folder / "turn").open("w") as turn, (folder / "machine").open("w") as machine:
        fcntl.flock(turn, fcntl.LOCK_EX)  # while a test waits for the exclusive lock, no further test starts
        fcntl.flock(machine, kind)
        fcntl.flock(turn, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(machine, fcntl.LOCK_UN)  # closing alone leaves the lock to processes forked meanwhile
