"""A pytest plugin: the processor time of every test, its limit for tests without a mark, and a table of all.

Counted is what the worker and its ended children use, since the machine may be busy with something else.
`--costs FILE` writes the table.
"""

import os
import resource
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

FREE_MARKS: Final = ("smoke", "thorough", "slow", "alone", "cuda")
"""Tests with one of these may take as long as they need."""
_MANY_MODULES: Final = 40
"""A test that imports more than this pays for the tests after it."""
_PROPERTY: Final = "cpu_s"
_BUSY: Final = 2.5
"""Processes per processor; `make test` alone has about one."""
_LOOP: Final = range(400_000)
_LOOP_S: Final = 0.02
"""The processor time of `_LOOP` on the machine for which the limit is meant."""
_TOLERANCE: Final = 2.0 if os.environ.get("CI") else 1.0
"""The limit is for people who write tests; a CI machine whose load is not known fails only clear cases."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--costs", type=Path, help="write each test's processor time to this file")
    parser.addini("cpu_limit_s", "processor time of a test's call without a mark; inf: no limit", default="inf")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("costs") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Table(config.getoption("costs")))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    with _Meter(item, "setup"):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    num_modules = len(sys.modules)
    with _Meter(item, "call") as meter:
        result = yield
    limit_s = float(item.config.getini("cpu_limit_s"))
    is_free = len(sys.modules) - num_modules > _MANY_MODULES or any(map(item.get_closest_marker, FREE_MARKS))
    allowed_s = limit_s * _TOLERANCE
    if meter.cpu_s > allowed_s and not is_free and not _is_busy() and meter.cpu_s > allowed_s * _slowness():
        pytest.fail(
            f"{meter.cpu_s:.2f} s of processor time; a test without a mark has {limit_s:g} s: make it cheaper, test "
            "the rule at a lower layer, or mark it `thorough` (see tests/README.md)",
            pytrace=False,
        )
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    with _Meter(item, "teardown"):
        return (yield)


class _Meter:
    """Measures one phase of a test and hands the result to the report."""

    def __init__(self, item: pytest.Item, phase: str) -> None:
        self._item = item
        self._phase = phase
        self.cpu_s = 0.0

    def __enter__(self) -> "_Meter":
        self._begin_s = _cpu_s()
        return self

    def __exit__(self, *_: object) -> None:
        own_s, of_children_s = (now - begin for now, begin in zip(_cpu_s(), self._begin_s, strict=True))
        self.cpu_s = own_s + of_children_s
        self._item.user_properties.append((f"{_PROPERTY} {self._phase}", [own_s, of_children_s]))


def _is_busy() -> bool:
    """Whether so many other processes run that they slow this one down, by caches and shared cores."""
    return os.getloadavg()[0] > _BUSY * len(os.sched_getaffinity(0))


def _slowness() -> float:
    """How much slower this machine is now than the one for which the limit is meant."""
    begin_s = time.thread_time()
    total = 0
    for number in _LOOP:
        total += number * number % 7
    return max(1.0, (time.thread_time() - begin_s) / _LOOP_S)


def _cpu_s() -> tuple[float, float]:
    """Processor time of this process, and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    own_s, of_children_s = (usage.ru_utime + usage.ru_stime for usage in usages)
    return own_s, of_children_s


class _Row(NamedTuple):
    """The processor time of one test."""

    test: str
    phases_s: dict[str, tuple[float, float]]
    """Of this process and of its children, by phase."""
    wall_s: float
    marks: list[str]

    @property
    def cpu_s(self) -> float:
        return sum(map(sum, self.phases_s.values()))


class _Table:
    """Collects the costs from the reports of all workers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[_Row] = []
        self._walls_s: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._walls_s[report.nodeid] = self._walls_s.get(report.nodeid, 0.0) + report.duration
        if report.when == "teardown":
            costs = {name: value for name, value in report.user_properties if name.startswith(_PROPERTY)}
            phases_s = {name.removeprefix(f"{_PROPERTY} "): tuple(value) for name, value in costs.items()}
            marks = [mark for mark in FREE_MARKS if mark in report.keywords]
            self._rows.append(_Row(report.nodeid, phases_s, self._walls_s.pop(report.nodeid), marks))

    def pytest_sessionfinish(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("".join(f"{line}\n" for line in self._lines()))

    def _lines(self) -> Iterator[str]:
        yield "cpu s\tsetup\tcall\tteardown\tchildren\twall s\tmarks\ttest"
        for row in sorted(self._rows, key=lambda row: -row.cpu_s):
            phases = (sum(row.phases_s.get(phase, (0.0,))) for phase in ("setup", "call", "teardown"))
            children_s = sum(of_children_s for _, of_children_s in row.phases_s.values())
            figures = (row.cpu_s, *phases, children_s, row.wall_s)
            yield "\t".join([*(f"{figure:.3f}" for figure in figures), ",".join(row.marks), row.test])
