"""Finds the figures that are worse than another side's or than a baseline's by more than the tolerance."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vllm_cli.bench.figures import Metric
from vllm_cli.bench.results import Spread


class MedianRatios(NamedTuple):
    """Ratios of one side to another, or to an earlier run, under one condition."""

    where: str
    against: str
    ratios: Mapping[str, float]


def divide_medians(now: Mapping[str, Spread], then: Mapping[str, Spread]) -> dict[str, float]:
    """This run's medians divided by an earlier run's, for the figures that both have."""
    return {
        name: spread.median / then[name].median for name, spread in now.items() if name in then and then[name].median
    }


def take_medians(ratios: Mapping[str, Spread]) -> dict[str, float]:
    """The medians of the ratios."""
    return {name: spread.median for name, spread in ratios.items()}


def find_worse(metrics: Iterable[Metric], all_ratios: Iterable[MedianRatios], *, tolerance: float) -> list[str]:
    """One line for each of these figures that is worse by more than the tolerance."""
    metrics = tuple(metrics)
    return [
        f"{compared.where}: {metric.label} is {ratio:.2f}x that of {compared.against}"
        for compared in all_ratios
        for metric in metrics
        if (ratio := compared.ratios.get(metric.name)) is not None
        if (ratio < 1 - tolerance if metric.is_higher_better else ratio > 1 + tolerance)
    ]
