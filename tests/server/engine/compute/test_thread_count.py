"""The number of threads follows the load: the times of steps, and processor time as the kernel counts it."""

import logging
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest

from base.machine.processors import ProcessorTime, ThreadTime
from server.engine.compute.thread_count import ThreadCount

_NS = 1_000_000_000


class Pace(NamedTuple):
    """The time of a step, and processor time per second in each state."""

    step_s: float
    running: float
    waiting: float = 0.0
    idle: float = 0.0
    stolen: float = 0.0


Load = dict[int, Pace]
"""Number of threads -> pace."""

QUIET: Load = {1: Pace(0.036, 1.0, 0.0, 0.98), 2: Pace(0.026, 1.79, 0.05, 0.24)}
BUSY_NEIGHBOUR: Load = {1: Pace(0.037, 0.98, 0.02), 2: Pace(0.094, 0.98, 0.75)}
QUOTA: Load = {1: Pace(0.248, 1.0, 0.0, 0.99), 2: Pace(0.262, 1.50, 0.23, 0.48)}
QUOTA_WORTH_TWO: Load = {1: Pace(0.048, 1.0, 0.0, 0.99), 2: Pace(0.036, 1.50, 0.23, 0.48)}
BESIDE_ITS_CLIENTS: Load = {1: Pace(0.027, 1.0, 0.0, 0.7), 2: Pace(0.022, 1.3, 0.65, 0.05)}
STOLEN: Load = {1: Pace(0.04, 0.98, 0.02, stolen=0.2), 2: Pace(0.09, 0.9, 0.0, stolen=1.0)}
QUIET_FOUR: Load = {1: Pace(0.08, 1.0, 0.0, 3.0), 2: Pace(0.045, 1.9, 0.0, 2.0), 3: Pace(0.032, 2.8, 0.0, 1.0)} | {
    4: Pace(0.025, 3.6, 0.1)
}
NEIGHBOUR_OF_FOUR: Load = QUIET_FOUR | {3: Pace(0.033, 2.8, 0.1), 4: Pace(0.05, 2.0, 0.5)}


@dataclass
class Machine:
    """Runs steps of an engine on a simulated clock."""

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

    def run(self, count: ThreadCount, seconds: float, *, gap_s: float = 0.0, num_tokens: int = 1) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            step_s = self.load[self.num_threads].step_s
            self._pass(step_s)
            count.record(step_s, num_tokens)
            self._wait(gap_s)

    def _wait(self, gap_s: float) -> None:
        """Advances the clock while only the neighbour computes."""
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


@pytest.mark.parametrize(
    ("load", "is_fixed", "changes"),
    [
        pytest.param(QUIET, False, [2], id="alone"),
        pytest.param(BUSY_NEIGHBOUR, False, [2, 1], id="a neighbour that stays"),
        pytest.param(BUSY_NEIGHBOUR, True, [2], id="a number that the user chose"),
        pytest.param(QUOTA, False, [2], id="a quota of one and a half processors"),
        pytest.param(QUOTA_WORTH_TWO, False, [2], id="such a quota, worth two threads"),
        pytest.param({1: Pace(0.037, 0.0), 2: Pace(0.094, 0.0)}, False, [2], id="without accounting"),
    ],
)
def test_a_load_that_stays_changes_the_number_once_at_most(load, is_fixed, changes):
    machine = Machine(load)
    machine.run(machine.count(2, is_fixed=is_fixed), 600)
    assert machine.changes == changes


EIGHT_BUSY: Load = {n: Pace(0.1, 1, n - 1) for n in range(1, 9)}
EIGHT: Load = {n: Pace(0.2 / n, n, 0, 8 - n) for n in range(1, 9)}


@pytest.mark.parametrize(
    ("loads", "gap_s"),
    [
        pytest.param([(QUIET, 10, 2), (BUSY_NEIGHBOUR, 1.5, 1)], 0, id="a neighbour takes one"),
        pytest.param([(BUSY_NEIGHBOUR, 300, 1), (QUIET, 1, 2), (QUIET, 60, 2)], 0, id="it comes back and stays"),
        pytest.param([(NEIGHBOUR_OF_FOUR, 5, 3), (QUIET_FOUR, 5, 4)], 0, id="one of four"),
        pytest.param([(EIGHT_BUSY, 10, 1), (EIGHT, 10, 8)], 0, id="all come back at once"),
        pytest.param([(STOLEN, 2, 1)], 0, id="time that the hypervisor takes counts as waiting"),
        pytest.param([(BUSY_NEIGHBOUR, 10, 1), (QUIET, 200, 2)], 0.5, id="short bursts of requests are enough"),
    ],
)
def test_the_number_of_threads_follows_the_load(loads, gap_s):
    machine = Machine(loads[0][0])
    count = machine.count(len(machine.load))
    for load, seconds, num_threads in loads:
        machine.load = load
        machine.run(count, seconds, gap_s=gap_s)
        assert count.num_threads == machine.num_threads == num_threads


def test_a_processor_that_is_idle_only_without_the_second_thread_is_taken_ever_more_rarely():
    machine = Machine({1: QUIET[1], 2: BUSY_NEIGHBOUR[2]})
    machine.run(machine.count(2), 600)
    assert 8 <= machine.changes.count(2) <= 20


def test_a_thread_without_which_steps_take_longer_comes_back_and_goes_ever_more_rarely():
    machine = Machine(BESIDE_ITS_CLIENTS)
    count = machine.count(2)
    machine.run(count, 600)
    assert 8 <= machine.changes.count(1) <= 20
    machine.load = BUSY_NEIGHBOUR
    machine.run(count, 120)
    assert count.num_threads == 1


def test_steps_of_other_sizes_are_not_compared():
    """The batch grows just when the number of threads changes. Its steps take longer with any number."""
    machine = Machine(BUSY_NEIGHBOUR)
    count = machine.count(2)
    machine.run(count, 0.3)
    assert count.num_threads == 1
    machine.load = {1: Pace(0.3, 0.98, 0.02), 2: Pace(0.9, 0.98, 0.75)}
    machine.run(count, 10, num_tokens=8)
    assert count.num_threads == 1


def test_a_prompt_is_no_time_to_try_fewer_threads():
    """No later step would have as many tokens for a comparison."""
    machine = Machine(BESIDE_ITS_CLIENTS)
    count = machine.count(2)
    for num_tokens in range(2000, 2100):
        machine.run(count, 0.01, num_tokens=num_tokens)
    assert count.num_threads == 2


def test_changes_are_logged_once_a_minute(caplog):
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
