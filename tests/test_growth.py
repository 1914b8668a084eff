"""A cost that grows faster than its input is found."""

from collections.abc import Callable
from time import thread_time_ns

import pytest

from tests.growth import growth

pytestmark = pytest.mark.alone


def _spend(duration_ns: int) -> None:
    end = thread_time_ns() + duration_ns
    while thread_time_ns() < end:
        pass


def test_only_a_quadratic_cost_is_reported():
    assert growth(lambda n: lambda: _spend(1000 * n)) is None
    assert growth(lambda n: lambda: _spend(n * n), patience_s=0.1) is not None


def test_a_slow_first_call_hides_no_quadratic_cost():
    calls: list[int] = []

    def prepare(n: int) -> Callable[[], None]:
        def work() -> None:
            calls.append(n)
            _spend(n * n if len(calls) > 1 else 1_000_000)

        return work

    assert growth(prepare, smallest=64, patience_s=0.1) is not None
