"""Tests marked `alone` are the last and run alone; tests that start later do not delay them."""

import fcntl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from xdist.scheduler.worksteal import MIN_PENDING

from tests.machine_lock import machine_lock, worker_number
from tests.waiting import wait_until


class Runner:
    """Holds the lock in a thread until `end`."""

    def __init__(self, folder: Path, *, is_exclusive: bool) -> None:
        self.is_running = threading.Event()
        self.may_end = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(folder, is_exclusive))
        self._thread.start()

    def _run(self, folder: Path, is_exclusive: bool) -> None:
        with machine_lock(folder, is_exclusive=is_exclusive):
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


def test_exclusive_test_waits_for_running_tests_and_runs_before_later_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw1")
    first, second = (Runner(tmp_path, is_exclusive=False) for _ in range(2))
    assert first.is_running.wait(60)
    assert second.is_running.wait(60), "shared tests run beside each other"
    alone = Runner(tmp_path, is_exclusive=True)
    wait_until(lambda: is_locked(tmp_path / "turn"))
    later = Runner(tmp_path, is_exclusive=False)
    first.end()
    assert not alone.is_running.is_set()
    second.end()
    assert alone.is_running.wait(60)
    assert not later.is_running.is_set()
    alone.end()
    assert later.is_running.wait(60)
    later.end()


_TWO_CHUNKS = """
import pytest
from pathlib import Path

def note(word):
    with Path("order").open("a") as file:
        file.write(word)

@pytest.mark.parametrize("number", range(4))
@pytest.mark.alone
def test_alone(number): note("a")

@pytest.mark.parametrize("number", range(16))
def test_beside_others(number): note("b")
"""


@pytest.fixture
def run_workers(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pytest.RunResult]:
    """Runs the tests of `_TWO_CHUNKS`, of which each of two workers gets half."""
    pytester.makepyfile(_TWO_CHUNKS)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    words = ("-p", "tests.machine_lock", "--dist", "worksteal")
    return lambda *more: pytester.runpytest_subprocess(*words, *more)


@pytest.mark.thorough
def test_the_tests_that_run_alone_are_handed_out_last(run_workers: Callable[..., pytest.RunResult]) -> None:
    """A worker without tests steals the last ones of another worker's half."""
    run_workers("-n", "2").assert_outcomes(passed=20)
    order = Path("order").read_text()
    assert order.index("a") >= 16 - 2 * MIN_PENDING, order


@pytest.mark.thorough
def test_a_run_of_such_tests_only(run_workers: Callable[..., pytest.RunResult]) -> None:
    run_workers("-n", "3", "-m", "alone").assert_outcomes(passed=4)


def test_without_workers_there_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    with machine_lock(tmp_path, is_exclusive=True), machine_lock(tmp_path, is_exclusive=True):
        assert worker_number() == 0
        assert not list(tmp_path.iterdir())
