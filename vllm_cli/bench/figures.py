"""Computes percentiles, medians and spreads over rounds, ratios of paired rounds, and what is worse."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

Figures = Mapping[str, Any]
"""What one round measured, by name; a figure that could not be measured is None or missing."""


class Metric(NamedTuple):
    """A figure that is shown; most are also compared between sides."""

    name: str
    label: str
    is_higher_better: bool = False
    is_compared: bool = True
    """False for a count that may be 0."""


class Spread(NamedTuple):
    """A figure over the rounds."""

    median: float
    min: float
    max: float


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The value below which `percent` of the values lie, interpolated; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below, above = math.floor(position), math.ceil(position)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def percentiles_ms(name: str, values_ns: Sequence[float], *percents: int) -> dict[str, float | None]:
    """Figures such as `ttft_p50_ms`; the one of 100 percent is the maximum."""
    names = (f"{name}_max_ms" if percent == 100 else f"{name}_p{percent}_ms" for percent in percents)
    values = (percentile(values_ns, percent) for percent in percents)
    return {name: None if value is None else value / 1e6 for name, value in zip(names, values, strict=True)}


def spread_of(values: Iterable[float | None]) -> Spread | None:
    """Median, minimum and maximum of the values that are not None; None without any."""
    present = [value for value in values if value is not None]
    return Spread(median(present), min(present), max(present)) if present else None


def summarize_rounds(metrics: Iterable[Metric], rounds: Sequence[Figures]) -> dict[str, Spread]:
    """The spread of every figure that at least one round has."""
    spreads = {metric.name: spread_of(_values(rounds, metric)) for metric in metrics}
    return {name: spread for name, spread in spreads.items() if spread}


def compare_rounds(metrics: Iterable[Metric], ours: Sequence[Figures], theirs: Sequence[Figures]) -> dict[str, Spread]:
    """The ratios of one side's figures to another side's, round by round: median and spread."""
    ratios = {}
    for metric in metrics:
        pairs = zip(_values(ours, metric), _values(theirs, metric), strict=True)
        spread = spread_of(mine / other if mine is not None and other else None for mine, other in pairs)
        if spread and metric.is_compared:
            ratios[metric.name] = spread
    return ratios


def _values(rounds: Sequence[Figures], metric: Metric) -> list[float | None]:
    return [figures.get(metric.name) for figures in rounds]
