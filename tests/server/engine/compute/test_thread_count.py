"""The number of threads under loads as measured: how long steps take and what the kernel accounts."""

import logging
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest

from server.engine.compute.thread_count import ThreadCount
from server.machine.processors import ProcessorTime, ThreadTime

_NS = 1_000_000_000


class Pace(NamedTuple):
    """A step, and processor time in processors."""

    step_s: float
    running: float
    waiting: float = 0.0
    idle: float = 0.0
    stolen: float = 0.0


Load = dict[int, Pace]
"""By the number of threads."""

QUIET: Load = {1: Pace(0.036, 1.0, 0.0, 0.98), 2: Pace(0.026, 1.79, 0.05, 0.24)}
BUSY_NEIGHBOUR: Load = {1: Pace(0.037, 0.98, 0.02), 2: Pace(0.094, 0.98, 0.75)}
QUIET_ONE_TOKEN: Load = {1: Pace(0.0304, 1.0, 0.0, 0.98), 2: Pace(0.0304, 1.75, 0.03, 0.22)}
QUOTA: Load = {1: Pace(0.248, 1.0, 0.0, 0.99), 2: Pace(0.262, 1.50, 0.23, 0.48)}
QUOTA_WORTH_TWO: Load = {1: Pace(0.048, 1.0, 0.0, 0.99), 2: Pace(0.036, 1.50, 0.23, 0.48)}
STOLEN: Load = {1: Pace(0.04, 0.98, 0.02, stolen=0.2), 2: Pace(0.09, 0.9, 0.0, stolen=1.0)}
UNACCOUNTED: Load = {1: Pace(0.037, 0.0), 2: Pace(0.094, 0.0)}
QUIET_FOUR: Load = {1: Pace(0.08, 1.0, 0.0, 3.0), 2: Pace(0.045, 1.9, 0.0, 2.0), 3: Pace(0.032, 2.8, 0.0, 1.0)} | {
    4: Pace(0.025, 3.6, 0.1)
}
NEIGHBOUR_OF_FOUR: Load = QUIET_FOUR | {3: Pace(0.033, 2.8, 0.1), 4: Pace(0.05, 2.0, 0.5)}


@dataclass
class Machine:
    """Runs steps of an engine on a clock of its own."""

    load: Load
    num_threads: int = 0
    now_s: float = 100.0
    changes: list[int] = field(default_factory=list)
    _running_s: float = 1.0
    _waiting_s: float = 0.0
    _idle_s: float = 0.0
    _busy_s: float = 1.0
    _stolen_s: float = 0.0

    def use_threads(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self.changes.append(num_threads)

    def read_time(self) -> ProcessorTime:
        time = ThreadTime(round(self._running_s * _NS), round(self._waiting_s * _NS))
        return ProcessorTime({"1": time}, len(self.load), self._idle_s, self._busy_s, self._stolen_s)

    def clock(self) -> float:
        return self.now_s

    def count(self, maximum: int, *, is_fixed: bool = False) -> ThreadCount:
        return ThreadCount(
            maximum, is_fixed=is_fixed, use_threads=self.use_threads, read_time=self.read_time, clock=self.clock
        )

    def run(self, count: ThreadCount, seconds: float, *, sizes: tuple[int, ...] = (1,), gap_s: float = 0.0) -> None:
        """Steps with these numbers of tokens in turn; a token more makes a step a hundredth longer."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            for size in sizes:
                step_s = self.load[self.num_threads].step_s * (1 + size / 100)
                self._pass(step_s)
                count.record(size, step_s)
                self._wait(gap_s)

    def _wait(self, gap_s: float) -> None:
        """Only the neighbour computes."""
        pace = self.load[self.num_threads]
        self.now_s += gap_s
        self._idle_s += (pace.idle + pace.running) * gap_s
        self._busy_s += (len(self.load) - pace.idle - pace.running) * gap_s

    def _pass(self, step_s: float) -> None:
        pace = self.load[self.num_threads]
        self.now_s += step_s
        self._running_s += pace.running * step_s
        self._waiting_s += pace.waiting * step_s
        self._idle_s += pace.idle * step_s
        self._busy_s += (len(self.load) - pace.idle - pace.stolen) * step_s
        self._stolen_s += pace.stolen * step_s


def test_an_engine_alone_keeps_all_threads() -> None:
    machine = Machine(QUIET)
    machine.run(machine.count(2), 600)
    assert machine.changes == [2]


def test_a_busy_neighbour_takes_a_thread_within_half_a_second() -> None:
    machine = Machine(QUIET)
    count = machine.count(2)
    machine.run(count, 10)
    machine.load = BUSY_NEIGHBOUR
    machine.run(count, 0.5)
    assert machine.num_threads == 1


def test_the_thread_comes_back_with_the_processor() -> None:
    machine = Machine(BUSY_NEIGHBOUR)
    count = machine.count(2)
    machine.run(count, 300)
    assert machine.num_threads == 1
    machine.load = QUIET
    machine.run(count, 1)
    assert count.num_threads == machine.num_threads == 2
    machine.run(count, 60)
    assert machine.changes[-1] == 2


def test_idle_processors_are_tried_again_soon_when_the_steps_have_changed() -> None:
    machine = Machine(BUSY_NEIGHBOUR)
    count = machine.count(2)
    machine.run(count, 10)
    machine.load = QUIET_ONE_TOKEN
    machine.run(count, 100)
    assert machine.num_threads == 1, "a second thread adds nothing"
    machine.load = QUIET
    machine.run(count, 6)
    assert machine.num_threads == 2


def test_trials_beside_a_steady_neighbour_become_rare() -> None:
    machine = Machine(BUSY_NEIGHBOUR)
    count = machine.count(2)
    machine.run(count, 600)
    assert machine.changes[:2] == [2, 1]
    trials = machine.changes[2::2]
    assert set(trials) == {2}
    assert 5 <= len(trials) <= 14


@pytest.mark.parametrize(("quota", "expected"), [(QUOTA, 1), (QUOTA_WORTH_TWO, 2)], ids=["slower", "faster"])
def test_under_a_quota_the_faster_number_is_used(quota: Load, expected: int) -> None:
    machine = Machine(quota)
    count = machine.count(2)
    used_s = 0.0
    for _ in range(600):
        machine.run(count, 1)
        used_s += machine.num_threads == expected
    assert set(machine.changes) == {1, 2}, "both are tried"
    assert used_s > 570


def test_one_busy_processor_of_four_takes_one_thread_of_four() -> None:
    machine = Machine(NEIGHBOUR_OF_FOUR)
    count = machine.count(4)
    machine.run(count, 5)
    assert machine.num_threads == 3
    machine.load = QUIET_FOUR
    machine.run(count, 5)
    assert machine.num_threads == 4


def test_all_threads_come_back_one_trial_after_the_other() -> None:
    machine = Machine({n: Pace(0.1, 1, n - 1) for n in range(1, 9)})
    count = machine.count(8)
    machine.run(count, 10)
    assert machine.num_threads == 1
    machine.load = {n: Pace(0.2 / n, n, 0, 8 - n) for n in range(1, 9)}
    machine.run(count, 10)
    assert machine.num_threads == 8


def test_time_that_the_hypervisor_takes_counts_as_waiting() -> None:
    machine = Machine(STOLEN)
    machine.run(machine.count(2), 2)
    assert machine.num_threads == 1


def test_without_accounting_the_number_stays() -> None:
    machine = Machine(UNACCOUNTED)
    machine.run(machine.count(2), 60)
    assert machine.changes == [2]


def test_a_number_that_the_user_chose_stays() -> None:
    machine = Machine(BUSY_NEIGHBOUR)
    machine.run(machine.count(2, is_fixed=True), 60)
    assert machine.changes == [2]


def test_only_steps_of_similar_size_are_compared() -> None:
    machine = Machine(QUOTA_WORTH_TWO)
    count = machine.count(2)
    machine.run(count, 0.4, sizes=(400,))  # a trial of one thread begins after large steps
    assert machine.num_threads == 1
    machine.run(count, 0.8, sizes=(1, 400))  # the small ones are faster than the large ones with two
    assert machine.num_threads == 2


def test_without_similar_steps_the_number_before_is_used_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    machine = Machine(QUOTA_WORTH_TWO)
    count = machine.count(2)
    machine.run(count, 0.3, sizes=(1,))
    assert machine.changes == [2, 1]
    machine.run(count, 1, sizes=(50,))
    assert machine.changes == [2, 1, 2]
    assert not caplog.messages, "nothing was learned"


def test_steps_that_are_never_alike_do_not_make_trials_rare() -> None:
    machine = Machine(BUSY_NEIGHBOUR)
    count = machine.count(2)
    machine.run(count, 60, sizes=tuple(round(10 * 1.3**k) for k in range(14)))
    assert machine.changes.count(1) >= 15
    machine.run(count, 3, sizes=(1,))
    assert machine.num_threads == 1, "found as soon as steps can be compared"


def test_a_trial_of_more_threads_ends_soon_without_similar_steps() -> None:
    machine = Machine(BUSY_NEIGHBOUR)
    count = machine.count(2)
    machine.run(count, 10)
    while machine.num_threads == 1:
        machine.run(count, 0.1, sizes=(400,))
    num_steps = 0
    while machine.num_threads == 2:
        machine.run(count, 0.01)
        num_steps += 1
    assert num_steps <= 9


def test_short_bursts_of_requests_are_enough() -> None:
    machine = Machine(BUSY_NEIGHBOUR)
    count = machine.count(2)
    machine.run(count, 10, gap_s=0.5)
    assert machine.num_threads == 1
    machine.load = QUIET
    machine.run(count, 200, gap_s=0.5)
    assert machine.num_threads == 2


def test_changes_are_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    machine = Machine(QUIET)
    count = machine.count(2)
    for _ in range(10):
        machine.load = BUSY_NEIGHBOUR
        machine.run(count, 3)
        machine.load = QUIET
        machine.run(count, 3)
    assert len(machine.changes) > 15
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("computing with 1 of 2 threads")
