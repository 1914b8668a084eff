"""How fast a figure grows, told by a line that outliers do not bend."""

from collections.abc import Sequence
from itertools import combinations
from statistics import median
from typing import Final, NamedTuple

_MAX_POINTS: Final = 400
"""More are thinned out: the number of pairs is half its square."""
_TEN_MINUTES_S: Final = 600.0


class Point(NamedTuple):
    """One look at a figure."""

    at_s: float
    value: float


class Trend(NamedTuple):
    """A line through points: Theil's and Sen's, whose slope is the median of those of all pairs of points."""

    level: float
    """Where the line begins."""
    per_second: float
    duration_s: float

    @property
    def per_ten_minutes(self) -> float:
        """Growth as a share of where the line begins."""
        return self.per_second * _TEN_MINUTES_S / self.level if self.level else 0.0

    @property
    def growth(self) -> float:
        """From the first point to the last, by the line."""
        return self.per_second * self.duration_s


def fit_trend(points: Sequence[Point]) -> Trend | None:
    """The line; None of fewer than two points at different times."""
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
