from time import thread_time_ns

import pytest

from tests.support.growth import growth

pytestmark = pytest.mark.alone


def _spend(duration_ns: int) -> None:
    end = thread_time_ns() + duration_ns
    while thread_time_ns() < end:
        pass


def test_only_a_quadratic_cost_is_reported():
    assert growth(lambda n: lambda: _spend(1000 * n)) is None
    assert growth(lambda n: lambda: _spend(n * n), patience_s=0.1) is not None
