"""A pytest plugin: tests marked `alone` run after all others, while no other worker of pytest-xdist runs one.

A lock ensures the latter. The order is for the time of a run: while such a test waits for the tests of the
other workers, none of them begins another one.
"""

import fcntl
import os
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler.worksteal import MIN_PENDING, WorkStealingScheduling

_WORKER = "PYTEST_XDIST_WORKER"
_COUNT = "alone"
"""The file in which the workers write how many of the last tests run alone, for the scheduler."""


def worker_number() -> int:
    """The number of this pytest-xdist worker, from 0; 0 without pytest-xdist."""
    return int(os.environ.get(_WORKER, "gw0").removeprefix("gw"))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """After pytest has selected by marks."""
    items.sort(key=_runs_alone)
    if hasattr(config, "workerinput"):
        (_shared_folder(config) / _COUNT).write_text(str(sum(map(_runs_alone, items))))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Holds the lock for a test and its fixtures. The wait for it is outside of the test's time-out."""
    with machine_lock(_shared_folder(item.config), is_exclusive=_runs_alone(item)):
        return (yield)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> WorkStealingScheduling | None:
    """Replaces pytest-xdist's own scheduler of this kind."""
    return AloneLast(config, log) if config.getvalue("dist") == "worksteal" else None


class AloneLast(WorkStealingScheduling):
    """Hands out the tests that run alone when no worker has other tests to give away."""

    _held: list[int] | None = None
    """Tests that were not handed out yet, by their place in the collection; None before the first test."""

    @property
    def tests_finished(self) -> bool:
        return not self._held and super().tests_finished

    def check_schedule(self) -> None:
        """Called after each test."""
        if self._held is None and self.pending:
            num_others = len(self.pending) - int((_shared_folder(self.config) / _COUNT).read_text())
            self._held, self.pending = self.pending[num_others:], self.pending[:num_others]
        if self._held and not self._has_others():
            self.pending, self._held = self._held, []
        super().check_schedule()

    def _has_others(self) -> bool:
        """Whether tests wait that any worker may run: `MIN_PENDING` stay with the worker that has them."""
        is_stealing = self.steal_requested_from_node is not None
        return bool(self.pending) or is_stealing or any(len(own) > MIN_PENDING for own in self.node2pending.values())


def _runs_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


def _shared_folder(config: pytest.Config) -> Path:
    """The run's temporary folder; those of the workers are in it."""
    folder = Path(config._tmp_path_factory.getbasetemp())
    return folder.parent if hasattr(config, "workerinput") else folder


def machine_lock(folder: Path, *, is_exclusive: bool) -> AbstractContextManager[None]:
    """Waits until a test may run, beside other tests or exclusively. Does nothing without pytest-xdist.

    Args:
        folder: for the lock files; the same one in all workers.
        is_exclusive: no other worker runs a test meanwhile.
    """
    if _WORKER not in os.environ:
        return nullcontext()
    return _locked(folder, fcntl.LOCK_EX if is_exclusive else fcntl.LOCK_SH)


@contextmanager
def _locked(folder: Path, kind: int) -> Iterator[None]:
    with (folder / "turn").open("w") as turn, (folder / "machine").open("w") as machine:
        fcntl.flock(turn, fcntl.LOCK_EX)  # while a test waits for the exclusive lock, no further test starts
        fcntl.flock(machine, kind)
        fcntl.flock(turn, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(machine, fcntl.LOCK_UN)  # closing alone leaves the lock to processes forked meanwhile
