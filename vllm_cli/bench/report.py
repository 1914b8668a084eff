"""The result of a benchmark: figures over all rounds and their ratios, as text, JSON and exit code."""

import os
import platform
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple, TextIO

import msgspec
import psutil

from base.machine.hardware import cpu_model
from vllm_cli.terminal import align

_SCHEMA_VERSION = 5


Figures = Mapping[str, Any]
"""Name of a figure -> its value in one round. The value is None or missing if it could not be measured."""


class Metric(NamedTuple):
    """A figure that is shown. Most figures are also compared between sides."""

    name: str
    label: str
    is_compared: bool = True
    """False for a count that may be 0, because 0 has no ratio."""


class Spread(NamedTuple):
    """Median, minimum and maximum of a figure over the rounds."""

    median: float
    min: float
    max: float


@dataclass(frozen=True, kw_only=True)
class Side:
    """A measured server. `rounds` has its figures by condition: a load, or a state of the caches."""

    name: str
    target: str
    """The server's URL or command, without secrets."""
    model: str
    version: str | None
    rounds: Mapping[str, Sequence[Figures]]
    note: str = ""
    """A note that follows the model's name in the report."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the JSON."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a benchmark measured, and how."""

    benchmark: str
    metrics: tuple[Metric, ...]
    settings: Mapping[str, Any]
    description: Sequence[str]
    """Lines about what was measured and how."""
    sides: Sequence[Side]
    """All measured servers. The first one is compared with each of the others."""
    problems: Sequence[str]
    """Signs that the figures are unreliable."""
    details: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Condition -> further lines of the report."""

    def compare(self, condition: str) -> list[dict[str, Spread]]:
        """For each side except the first: figure -> the first side's value divided by this side's value."""
        first, *others = (side.rounds[condition] for side in self.sides)
        return [compare_rounds(self.metrics, first, other) for other in others]


def run_and_publish(measure: Callable[[], Result], json_path: Path | None) -> int:
    """Measures, then writes report and JSON. Returns the exit code.

    Raises:
        SystemExit: SIGTERM has ended the measurement, which has cleaned up, with exit code 143.
    """
    former = signal.signal(signal.SIGTERM, _end)
    try:
        result = measure()
    finally:
        signal.signal(signal.SIGTERM, former)
    is_piped = json_path == Path("-")
    _write_report(result, sys.stderr if is_piped else sys.stdout)
    if json_path is not None:
        text = encode_result(result)
        sys.stdout.write(text) if is_piped else json_path.write_text(text, encoding="utf-8")
    return 0


def _end(number: int, _: object) -> None:
    """Handles SIGTERM. A second one ends this process at once."""
    signal.signal(number, signal.SIG_DFL)
    sys.exit(128 + number)


def encode_result(result: Result) -> str:
    """The result as indented JSON."""
    content = {
        "schema": f"vllm-cli/bench-{result.benchmark}",
        "schema_version": _SCHEMA_VERSION,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _describe_machine(),
        "settings": result.settings,
        "sides": [_encode_side(side, result.metrics) for side in result.sides],
        "ratios": [
            {"against": other.name, "condition": condition, "ratios": _encode_spreads(ratios)}
            for condition in result.sides[0].rounds
            for other, ratios in zip(result.sides[1:], result.compare(condition), strict=True)
        ],
        "problems": result.problems,
    }
    encoded = msgspec.json.encode(content, enc_hook=str)
    return msgspec.json.format(encoded, indent=2).decode() + "\n"


def _encode_side(side: Side, metrics: tuple[Metric, ...]) -> dict[str, Any]:
    conditions = [
        {"condition": condition, "summary": _encode_spreads(summarize_rounds(metrics, rounds)), "rounds": rounds}
        for condition, rounds in side.rounds.items()
    ]
    known = {"name": side.name, "target": side.target, "model": side.model, "version": side.version}
    return {**known, **side.facts, "conditions": conditions}


def _encode_spreads(spreads: Mapping[str, Spread]) -> dict[str, dict[str, float]]:
    return {name: spread._asdict() for name, spread in spreads.items()}


def _describe_machine() -> dict[str, Any]:
    """Properties of the machine that influence figures. Figures of different machines are not comparable."""
    return {
        "system": platform.platform(terse=True),
        "processor": cpu_model(),
        "num_cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def _write_report(result: Result, stream: TextIO) -> None:
    machine = _describe_machine()
    lines = [f"{machine['processor']}, {machine['num_cpus']} CPUs, {machine['memory_gib']:g} GiB", *result.description]
    for side in result.sides:
        version = f" {side.version}" if side.version else ""
        lines.append(f"{side.name}: {side.target}{version}; model {side.model}{side.note}")
    if len(result.sides) > 1:
        lines.append("Rounds alternate. Figures and ratios are medians over rounds (min-max).")
    for condition in result.sides[0].rounds:
        num_rounds = len(result.sides[0].rounds[condition])
        lines += ["", f"{condition}, rounds: {num_rounds}", *align(_table(result, condition), are_figures=True)]
        lines += result.details.get(condition, ())
    stream.writelines(f"{line}\n" for line in (*lines, "", *result.problems))


def _table(result: Result, condition: str) -> list[list[str]]:
    """A row for each figure: the values of all sides, then the ratios of the first side to the others."""
    first, *others = (side.name for side in result.sides)
    rows = [["", first, *others, *(f"{first}/{other}" for other in others)]]
    summaries = [summarize_rounds(result.metrics, side.rounds[condition]) for side in result.sides]
    ratios = result.compare(condition)
    for metric in result.metrics:
        if any(metric.name in summary for summary in summaries):
            cells = [_format_spread(spreads.get(metric.name)) for spreads in (*summaries, *ratios)]
            rows.append([metric.label, *cells])
    return rows


def _format_spread(spread: Spread | None) -> str:
    """A figure as `median (min-max)`."""
    if spread is None:
        return "-"
    middle, least, most = map(_format_figure, spread)
    return middle if spread.min == spread.max else f"{middle} ({least}-{most})"


def _format_figure(value: float) -> str:
    """The figure with about three digits and without an exponent."""
    if value >= 1000:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def percentile(values: Sequence[float], percent: int) -> float | None:
    """The value below which `percent` of the values lie, interpolated. None if there are no values."""
    if len(values) < 2:
        return next(iter(values), None)
    inner = quantiles(values, n=100, method="inclusive")
    return [min(values), *inner, max(values)][percent]


def percentiles_ms(name: str, values_ns: Sequence[float], *percents: int) -> dict[str, float | None]:
    """Figures such as `ttft_p50_ms`. 100 percent stands for the maximum."""
    figures: dict[str, float | None] = {}
    for percent in percents:
        value = percentile(values_ns, percent)
        figure = f"{name}_max_ms" if percent == 100 else f"{name}_p{percent}_ms"
        figures[figure] = None if value is None else value / 1e6
    return figures


def spread_of(values: Iterable[float | None]) -> Spread | None:
    """Median, minimum and maximum of the values that are not None. None if no such value exists."""
    present = [value for value in values if value is not None]
    return Spread(median(present), min(present), max(present)) if present else None


def summarize_rounds(metrics: Iterable[Metric], rounds: Sequence[Figures]) -> dict[str, Spread]:
    """The spread of every figure that at least one round has."""
    spreads = {metric.name: spread_of(_values(rounds, metric)) for metric in metrics}
    return {name: spread for name, spread in spreads.items() if spread}


def compare_rounds(metrics: Iterable[Metric], ours: Sequence[Figures], theirs: Sequence[Figures]) -> dict[str, Spread]:
    """Divides one side's figures by the other's, round by round. Returns the spread of these ratios."""
    ratios = {}
    for metric in metrics:
        pairs = zip(_values(ours, metric), _values(theirs, metric), strict=True)
        spread = spread_of(mine / other if mine is not None and other else None for mine, other in pairs)
        if spread and metric.is_compared:
            ratios[metric.name] = spread
    return ratios


def _values(rounds: Sequence[Figures], metric: Metric) -> list[float | None]:
    return [figures.get(metric.name) for figures in rounds]
