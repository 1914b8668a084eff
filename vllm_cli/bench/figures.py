"""Turns samples into figures: percentiles of a round, medians and spread over rounds, ratios pair by pair."""

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

from vllm_cli.bench.load import LoadSamples
from vllm_cli.bench.probe import ProbeSamples
from vllm_cli.bench.results import LevelRatio, LevelResult, RoundFigures, Spread

_NUM_ERROR_MESSAGES = 3


class Metric(NamedTuple):
    """A figure that is compared between rounds and sides."""

    name: str
    """Its field in the figures of a round."""
    label: str
    is_higher_better: bool = False


METRICS = (
    Metric("output_tokens_per_s", "output tok/s", is_higher_better=True),
    Metric("requests_per_s", "requests/s", is_higher_better=True),
    Metric("ttft_p50_ms", "TTFT p50 ms"),
    Metric("ttft_p99_ms", "TTFT p99 ms"),
    Metric("itl_p50_ms", "inter-token p50 ms"),
    Metric("itl_p99_ms", "inter-token p99 ms"),
    Metric("e2e_p50_ms", "e2e p50 ms"),
    Metric("e2e_p99_ms", "e2e p99 ms"),
    Metric("health_p50_ms", "/health p50 ms"),
    Metric("health_p99_ms", "/health p99 ms"),
    Metric("health_max_ms", "/health max ms"),
)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The value below which `percent` of the values lie, interpolated between neighbours; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below, above = math.floor(position), math.ceil(position)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def percentile_ms(values_ns: Sequence[int], percent: float) -> float | None:
    """The same of nanoseconds, in milliseconds."""
    value_ns = percentile(values_ns, percent)
    return None if value_ns is None else value_ns / 1e6


def spread_of(values: Iterable[float | None]) -> Spread | None:
    """Median, least and greatest of the values that are there; None without any."""
    present = [value for value in values if value is not None]
    return Spread(median(present), min(present), max(present)) if present else None


def measure_round(load: LoadSamples, probes: ProbeSamples, *, max_tokens: int) -> RoundFigures:
    """The figures of one round; requests that failed count as errors and in nothing else."""
    good = [sample for sample in load.requests if sample.error is None]
    failed = [sample.error for sample in load.requests if sample.error is not None]
    output_tokens = sum(sample.num_output_tokens for sample in good)
    duration_s = load.duration_ns / 1e9
    ttfts = [sample.ttft_ns for sample in good if sample.ttft_ns is not None]
    gaps = [gap for sample in good for gap in sample.gaps_ns]
    e2es = [sample.e2e_ns for sample in good]
    return RoundFigures(
        output_tokens_per_s=output_tokens / duration_s,
        requests_per_s=len(good) / duration_s,
        ttft_p50_ms=percentile_ms(ttfts, 50),
        ttft_p99_ms=percentile_ms(ttfts, 99),
        itl_p50_ms=percentile_ms(gaps, 50),
        itl_p99_ms=percentile_ms(gaps, 99),
        e2e_p50_ms=percentile_ms(e2es, 50),
        e2e_p99_ms=percentile_ms(e2es, 99),
        health_p50_ms=percentile_ms(probes.latencies_ns, 50),
        health_p99_ms=percentile_ms(probes.latencies_ns, 99),
        health_max_ms=percentile_ms(probes.latencies_ns, 100),
        duration_s=duration_s,
        num_requests=len(load.requests),
        num_errors=len(failed),
        num_short=sum(sample.num_output_tokens < max_tokens for sample in good),
        prompt_tokens=sum(sample.usage.prompt_tokens for sample in good if sample.usage),
        output_tokens=output_tokens,
        num_probes=len(probes.latencies_ns),
        num_probe_errors=probes.num_errors,
        client_cpu_share=load.client_cpu_ns / load.duration_ns,
        errors=list(dict.fromkeys(failed))[:_NUM_ERROR_MESSAGES],
    )


def summarize_level(concurrency: int, rounds: list[RoundFigures]) -> LevelResult:
    """Median and spread of every figure over the rounds."""
    return LevelResult(concurrency=concurrency, summary=summarize_rounds(METRICS, rounds), rounds=rounds)


def compare_levels(ours: LevelResult, theirs: LevelResult, *, against: str) -> LevelRatio:
    """Ours over theirs, at one level."""
    ratios = compare_rounds(METRICS, ours.rounds, theirs.rounds)
    return LevelRatio(against=against, concurrency=ours.concurrency, ratios=ratios)


def summarize_rounds(metrics: Iterable[Metric], rounds: Sequence[object]) -> dict[str, Spread]:
    """Median and spread of every figure that some round has; a round has a field for each."""
    spreads = {metric.name: spread_of(_values(rounds, metric)) for metric in metrics}
    return {name: spread for name, spread in spreads.items() if spread}


def compare_rounds(metrics: Iterable[Metric], ours: Sequence[object], theirs: Sequence[object]) -> dict[str, Spread]:
    """Ours over theirs: each round against the one that was measured next to it, then the median of those."""
    ratios = {}
    for metric in metrics:
        pairs = zip(_values(ours, metric), _values(theirs, metric), strict=True)
        spread = spread_of(mine / other if mine is not None and other else None for mine, other in pairs)
        if spread:
            ratios[metric.name] = spread
    return ratios


def _values(rounds: Sequence[object], metric: Metric) -> list[float | None]:
    return [getattr(figures, metric.name) for figures in rounds]
