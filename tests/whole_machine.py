"""Tests that want the machine for themselves, where pytest-xdist runs others beside them."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

_WORKER = "PYTEST_XDIST_WORKER"


def worker_number() -> int:
    """Which of pytest-xdist's workers this process is, from 0; 0 where there is none."""
    return int(os.environ.get(_WORKER, "gw0").removeprefix("gw"))


def place_on_the_machine(folder: Path, *, is_alone: bool) -> AbstractContextManager[None]:
    """The time in which a test may run: with others', or with none of the other workers' tests.

    Args:
        folder: one that all workers know.
    """
    return _held(folder, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH) if _WORKER in os.environ else nullcontext()


@contextmanager
def _held(folder: Path, kind: int) -> Iterator[None]:
    with (folder / "turn").open("w") as turn, (folder / "machine").open("w") as machine:
        fcntl.flock(turn, fcntl.LOCK_EX)  # who waits to be alone lets nobody else begin
        fcntl.flock(machine, kind)
        fcntl.flock(turn, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(machine, fcntl.LOCK_UN)  # forked children hold what is only closed
