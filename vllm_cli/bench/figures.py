"""Computes percentiles, medians and spreads over rounds, ratios of paired rounds, and what is worse."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import NamedTuple

from vllm_cli.bench.results import Spread


class Metric(NamedTuple):
    """A figure that is shown; most are also compared between sides."""

    name: str
    """Its field in the figures of a round."""
    label: str
    is_higher_better: bool = False
    is_judged: bool = False
    """Whether --fail-over applies to it: the others follow from these, or are too noisy to fail a build."""
    is_compared: bool = True
    """False for a count that may be 0, and for the benchmark's own cost."""


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The value below which `percent` of the values lie, interpolated; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below, above = math.floor(position), math.ceil(position)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def mean_ms(values_ns: Sequence[float]) -> float | None:
    """The mean of nanoseconds, in milliseconds."""
    return fmean(values_ns) / 1e6 if values_ns else None


def percentile_ms(values_ns: Sequence[float], percent: float) -> float | None:
    """The percentile of nanoseconds, in milliseconds."""
    value_ns = percentile(values_ns, percent)
    return None if value_ns is None else value_ns / 1e6


def spread_of(values: Iterable[float | None]) -> Spread | None:
    """Median, minimum and maximum of the values that are not None; None without any."""
    present = [value for value in values if value is not None]
    return Spread(median(present), min(present), max(present)) if present else None


def summarize_rounds(metrics: Iterable[Metric], rounds: Sequence[object]) -> dict[str, Spread]:
    """The spread of every figure that at least one round has; each metric names a field of the rounds."""
    spreads = {metric.name: spread_of(_values(rounds, metric)) for metric in metrics}
    return {name: spread for name, spread in spreads.items() if spread}


def compare_rounds(metrics: Iterable[Metric], ours: Sequence[object], theirs: Sequence[object]) -> dict[str, Spread]:
    """The ratios of one side's figures to another side's, round by round: median and spread."""
    ratios = {}
    for metric in metrics:
        pairs = zip(_values(ours, metric), _values(theirs, metric), strict=True)
        spread = spread_of(mine / other if mine is not None and other else None for mine, other in pairs)
        if spread and metric.is_compared:
            ratios[metric.name] = spread
    return ratios


def find_worse(
    metrics: Iterable[Metric], ratios: Mapping[str, Spread], *, where: str, against: str, tolerance: float
) -> list[str]:
    """One line for each judged figure that is worse by more than the tolerance."""
    return [
        f"{where}: {metric.label} is {ratio.median:.2f}x that of {against}"
        for metric in metrics
        if metric.is_judged and (ratio := ratios.get(metric.name)) is not None
        if (ratio.median < 1 - tolerance if metric.is_higher_better else ratio.median > 1 + tolerance)
    ]


def _values(rounds: Sequence[object], metric: Metric) -> list[float | None]:
    return [getattr(figures, metric.name) for figures in rounds]
