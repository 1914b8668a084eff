"""Judges a soak: growth, leftovers and failures."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import median
from typing import Final, NamedTuple

from tools.soak.ledger import Ledger
from tools.soak.results import Gauges, GroupSample, Growth, HealthFigures, Rest, SoakSample

WHOLE_TREE: Final = "all processes"
_NOISE_BYTES: Final = 1 << 20
"""Less than this in the whole judged load is not growth, but a few pages more or less."""
_TEN_MINUTES_S: Final = 600.0
_MAX_POINTS: Final = 400
"""More points are thinned out, because the number of pairs grows with their square."""


def measure_growths(samples: Sequence[SoakSample], max_growth: float) -> list[Growth]:
    """The growth of RSS of all processes and of each role; `samples` are those of the judged load."""
    rows = [(sample.at_s, {WHOLE_TREE: sample.tree} | sample.groups) for sample in samples]
    growths = []
    for who in dict.fromkeys(who for _, groups in rows for who in groups):
        trend = fit_trend([Point(at_s, groups[who].rss_bytes) for at_s, groups in rows if who in groups])
        if trend is not None:
            growths.append(_judge_growth(who, trend, max_growth))
    return growths


def count_rests(before: SoakSample, after: SoakSample) -> list[Rest]:
    """The resources of each role after the warm-up and at the end."""
    nothing = GroupSample(0, 0, 0, 0)
    roles = dict.fromkeys([*before.groups, *after.groups])
    return [Rest(who, before.groups.get(who, nothing), after.groups.get(who, nothing)) for who in roles]


def has_settled(rests: Sequence[Rest], gauges: Gauges) -> bool:
    """Whether everything that the load used has been released."""
    return not [*_find_leftovers(rests), *_find_unfinished(gauges)]


def find_problems(
    *, growths: Sequence[Growth], rests: Sequence[Rest], gauges: Gauges, health: HealthFigures, ledger: Ledger
) -> list[str]:
    """One line for each reason to fail."""
    return [
        *(_describe_growth(growth) for growth in growths if not growth.is_flat),
        *_find_leftovers(rests),
        *_find_unfinished(gauges),
        *_find_faults(health, ledger),
    ]


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
    waves: float
    """How far the middle 80 % of the points lie apart without the slope."""

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
    levels = sorted(point.value - slope * (point.at_s - begin_s) for point in few)
    tenth = len(levels) // 10
    return Trend(median(levels), slope, few[-1].at_s - begin_s, waves=levels[-1 - tenth] - levels[tenth])


def _judge_growth(who: str, trend: Trend, max_growth: float) -> Growth:
    num_spans = max(1.0, trend.duration_s / _TEN_MINUTES_S)  # a short run is not extrapolated
    return Growth(
        who=who,
        level_bytes=trend.level,
        per_ten_minutes=trend.per_ten_minutes,
        growth_bytes=trend.growth,
        wave_bytes=trend.waves,
        is_flat=trend.growth < max(max_growth * num_spans * trend.level, _NOISE_BYTES, trend.waves),
    )


def _describe_growth(growth: Growth) -> str:
    return (
        f"{growth.who}: RSS grew by {growth.growth_bytes / (1 << 20):.1f} MiB, "
        f"{growth.per_ten_minutes:+.2%} in ten minutes, more than its waves of {growth.wave_bytes / (1 << 20):.1f} MiB"
    )


def _find_leftovers(rests: Sequence[Rest]) -> Iterator[str]:
    for rest in rests:
        for what, first, last in (
            ("open files", rest.before.num_fds, rest.after.num_fds),
            ("threads", rest.before.num_threads, rest.after.num_threads),
            ("processes", rest.before.num_processes, rest.after.num_processes),
        ):
            if last > first:
                yield f"{rest.who}: {last} {what} in the end, {first} after the warm-up"


def _find_unfinished(gauges: Gauges) -> Iterator[str]:
    for what, value in (
        ("requests run", gauges.num_running),
        ("requests wait", gauges.num_waiting),
        ("of the KV cache is in use", gauges.kv_cache_usage),
    ):
        if value:
            yield f"{value:g} {what} in the end"


def _find_faults(health: HealthFigures, ledger: Ledger) -> Iterator[str]:
    for ending, meaning in (("failed", "ended with another error than 503 and 504"), ("lost", "were lost")):
        if num := ledger.count(ending):  # type: ignore[arg-type]
            yield f"{num} requests {meaning}"
    if health.num_errors:
        yield f"{health.num_errors} probes of /health were not answered with 200"
    if not ledger.count("answered"):
        yield "no request was answered"
