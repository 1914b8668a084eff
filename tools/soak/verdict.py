"""Judges a soak: growth, leftovers and failures."""

from collections.abc import Iterator, Sequence
from typing import Final, Literal

from tools.soak.ledger import Ledger
from tools.soak.results import Gauges, GroupSample, Growth, HealthFigures, RestCount, SoakSample
from tools.soak.trend import Point, fit_trend

WHOLE_TREE: Final = "all processes"
_NOISE_BYTES: Final = 1 << 20
"""Less than this in the whole judged load is not growth, but a few pages more or less."""
_TEN_MINUTES_S: Final = 600.0


def measure_growths(samples: Sequence[SoakSample], max_growth: float) -> list[Growth]:
    """The growth of all processes and of each role; `samples` are those of the judged load."""
    rows = [(sample.at_s, {WHOLE_TREE: sample.tree} | sample.groups) for sample in samples]
    names = dict.fromkeys(who for _, groups in rows for who in groups)
    growths = []
    for who in names:
        seen = [(at_s, groups[who]) for at_s, groups in rows if who in groups]
        growths.append(_measure_growth(who, "rss", [Point(at_s, group.rss_bytes) for at_s, group in seen], max_growth))
        if who == WHOLE_TREE:  # a role's share of a page depends on the other roles
            pss = [Point(at_s, group.pss_bytes) for at_s, group in seen if group.pss_bytes is not None]
            growths.append(_measure_growth(who, "pss", pss, max_growth))
    return [growth for growth in growths if growth is not None]


def count_rests(before: SoakSample, after: SoakSample) -> list[RestCount]:
    """The resources of each role after the warm-up and at the end."""
    nothing = GroupSample(0, 0, 0, 0, 0, 0)
    counts = []
    for who in dict.fromkeys([*before.groups, *after.groups]):
        first, last = before.groups.get(who, nothing), after.groups.get(who, nothing)
        counts.append(
            RestCount(
                who=who,
                num_fds=(first.num_fds, last.num_fds),
                num_threads=(first.num_threads, last.num_threads),
                num_processes=(first.num_processes, last.num_processes),
                rss_bytes=(first.rss_bytes, last.rss_bytes),
                pss_bytes=(first.pss_bytes, last.pss_bytes),
            )
        )
    return counts


def has_settled(counts: Sequence[RestCount], gauges: Gauges) -> bool:
    """Whether everything that the load used has been released."""
    return not [*_find_leftovers(counts), *_find_unfinished(gauges)]


def find_problems(
    *, growths: Sequence[Growth], rests: Sequence[RestCount], gauges: Gauges, health: HealthFigures, ledger: Ledger
) -> list[str]:
    """One line for each reason to fail."""
    return [
        *(_describe_growth(growth) for growth in growths if growth.is_judged and not growth.is_flat),
        *_find_leftovers(rests),
        *_find_unfinished(gauges),
        *_find_faults(health, ledger),
    ]


def _measure_growth(
    who: str, measure: Literal["rss", "pss"], points: Sequence[Point], max_growth: float
) -> Growth | None:
    trend = fit_trend(points)
    if trend is None:
        return None
    num_spans = max(1.0, trend.duration_s / _TEN_MINUTES_S)  # a short run is not extrapolated
    return Growth(
        who=who,
        measure=measure,
        level_bytes=trend.level,
        per_ten_minutes=trend.per_ten_minutes,
        growth_bytes=trend.growth,
        is_flat=trend.growth < max(max_growth * num_spans * trend.level, _NOISE_BYTES),
    )


def _describe_growth(growth: Growth) -> str:
    return (
        f"{growth.who}: {growth.measure.upper()} grew by {growth.growth_bytes / (1 << 20):.1f} MiB, "
        f"{growth.per_ten_minutes:+.2%} in ten minutes"
    )


def _find_leftovers(counts: Sequence[RestCount]) -> Iterator[str]:
    for count in counts:
        for what, (first, last) in (
            ("open files", count.num_fds),
            ("threads", count.num_threads),
            ("processes", count.num_processes),
        ):
            if last > first:
                yield f"{count.who}: {last} {what} in the end, {first} after the warm-up"


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
