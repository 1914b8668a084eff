"""Fits a line to samples of a figure, robust against outliers."""

from collections.abc import Sequence
from itertools import combinations
from statistics import median
from typing import Final, NamedTuple

_MAX_POINTS: Final = 400
"""More points are thinned out, because the number of pairs grows with their square."""
_TEN_MINUTES_S: Final = 600.0


class Point(NamedTuple):
    """One sample of a figure."""

    at_s: float
    value: float


class Trend(NamedTuple):
    """A line through points by Theil and Sen: its slope is the median slope of all pairs of points."""

    level: float
    """Value at the begin of the line."""
    per_second: float
    duration_s: float

    @property
    def per_ten_minutes(self) -> float:
        """Growth as a share of the value at the begin."""
        return self.per_second * _TEN_MINUTES_S / self.level if self.level else 0.0

    @property
    def growth(self) -> float:
        """Growth of the line from the first point to the last."""
        return self.per_second * self.duration_s


def fit_trend(points: Sequence[Point]) -> Trend | None:
    """The line; None without two points at different times."""
    few = points[:: len(points) // _MAX_POINTS + 1]
    slopes = [
        (later.value - earlier.value) / (later.at_s - earlier.at_s)
        for earlier, later in combinations(few, 2)
        if later.at_s > earlier.at_s
    ]
    if not slopes:
        return None
    slope = median(slopes)
    begin_s = few[0].at_s
    level = median(point.value - slope * (point.at_s - begin_s) for point in few)
    return Trend(level, slope, few[-1].at_s - begin_s)
