import random

import pytest

from tools.soak.trend import Point, fit_trend


def test_a_straight_line_is_found():
    trend = fit_trend([Point(10 + at_s, 1000 + 2 * at_s) for at_s in range(100)])
    assert trend is not None
    assert (trend.level, trend.per_second) == (pytest.approx(1000), pytest.approx(2))
    assert trend.duration_s == pytest.approx(99)
    assert trend.growth == pytest.approx(198)
    assert trend.per_ten_minutes == pytest.approx(1.2)


def test_a_quarter_of_outliers_does_not_bend_the_line():
    source = random.Random(0)
    points = [Point(at_s, 5000 + at_s + (source.uniform(0, 9000) if at_s % 4 == 0 else 0)) for at_s in range(0, 900, 5)]
    trend = fit_trend(points)
    assert trend is not None
    assert trend.per_second == pytest.approx(1, abs=0.2)
    assert trend.level == pytest.approx(5000, rel=0.05)


def test_many_points_are_thinned_out_with_the_same_result():
    trend = fit_trend([Point(at_s, 7 + 3 * at_s) for at_s in range(20_000)])
    assert trend is not None
    assert trend.per_second == pytest.approx(3)


@pytest.mark.parametrize("points", [[], [Point(1, 1)], [Point(1, 1), Point(1, 9)]], ids=["none", "one", "one moment"])
def test_fewer_than_two_different_times_have_no_trend(points):
    assert fit_trend(points) is None


def test_a_line_from_zero_has_no_relative_growth():
    trend = fit_trend([Point(0, 0), Point(1, 0)])
    assert trend is not None
    assert trend.per_ten_minutes == pytest.approx(0)
