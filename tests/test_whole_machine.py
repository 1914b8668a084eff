"""A test that is to be alone is, and is not kept waiting for ever by those that come after it."""

import fcntl
import threading
from pathlib import Path

import pytest

from tests.waiting import wait_until
from tests.whole_machine import place_on_the_machine, worker_number


class Runner:
    """Takes a place in a thread of its own, and leaves when told."""

    def __init__(self, folder: Path, *, is_alone: bool) -> None:
        self.is_running = threading.Event()
        self.may_end = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(folder, is_alone))
        self._thread.start()

    def _run(self, folder: Path, is_alone: bool) -> None:
        with place_on_the_machine(folder, is_alone=is_alone):
            self.is_running.set()
            assert self.may_end.wait(60)

    def end(self) -> None:
        self.may_end.set()
        self._thread.join()


def is_locked(path: Path) -> bool:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_who_wants_to_be_alone_comes_before_those_who_come_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw1")
    first, second = (Runner(tmp_path, is_alone=False) for _ in range(2))
    assert first.is_running.wait(60)
    assert second.is_running.wait(60), "others run side by side"
    alone = Runner(tmp_path, is_alone=True)
    wait_until(lambda: is_locked(tmp_path / "turn"))
    later = Runner(tmp_path, is_alone=False)
    first.end()
    assert not alone.is_running.is_set()
    second.end()
    assert alone.is_running.wait(60)
    assert not later.is_running.is_set()
    alone.end()
    assert later.is_running.wait(60)
    later.end()


def test_without_workers_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    with place_on_the_machine(tmp_path, is_alone=True), place_on_the_machine(tmp_path, is_alone=True):
        assert worker_number() == 0
        assert not list(tmp_path.iterdir())
