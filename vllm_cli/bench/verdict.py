"""Says in which figures one side is worse than another one, or than it was, by more than the tolerance."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vllm_cli.bench.figures import Metric
from vllm_cli.bench.results import Spread


class Contest(NamedTuple):
    """One side over another one, or over an earlier run."""

    where: str
    against: str
    ratios: Mapping[str, float]


def divide_medians(now: Mapping[str, Spread], then: Mapping[str, Spread]) -> dict[str, float]:
    """This run's figures over an earlier one's, as far as both have them."""
    return {
        name: spread.median / then[name].median for name, spread in now.items() if name in then and then[name].median
    }


def take_medians(ratios: Mapping[str, Spread]) -> dict[str, float]:
    """The medians alone."""
    return {name: spread.median for name, spread in ratios.items()}


def find_worse(metrics: Iterable[Metric], contests: Iterable[Contest], *, tolerance: float) -> list[str]:
    """One line for each figure that decides and is worse by more than the tolerance."""
    metrics = tuple(metrics)
    return [
        f"{contest.where}: {metric.label} is {ratio:.2f}x that of {contest.against}"
        for contest in contests
        for metric in metrics
        if (ratio := contest.ratios.get(metric.name)) is not None
        if (ratio < 1 - tolerance if metric.is_higher_better else ratio > 1 + tolerance)
    ]
