"""The result of a benchmark: as text, as JSON, and as an exit code."""

import os
import platform
import sys
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import msgspec
import psutil

from base.machine.hardware import cpu_model
from vllm_cli.bench.figures import Figures, Metric, Spread, compare_rounds, summarize_rounds
from vllm_cli.interruption import Interrupted, run_interruptibly
from vllm_cli.text_table import align

_SCHEMA_VERSION = 4


@dataclass(frozen=True, kw_only=True)
class Side:
    """A measured server, and the figures of its rounds by condition: a load, or a state of the caches."""

    name: str
    target: str
    """The URL or the command, without secrets."""
    model: str
    version: str | None
    rounds: Mapping[str, Sequence[Figures]]
    note: str = ""
    """Follows the model's name in the report."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further fields in JSON."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one run measured, and how."""

    benchmark: str
    metrics: tuple[Metric, ...]
    settings: Mapping[str, Any]
    description: Sequence[str]
    """Lines about what was measured and how."""
    sides: Sequence[Side]
    """The first is compared with each of the others."""
    problems: Sequence[str]
    """Signs that the figures are unreliable."""
    has_failed: bool = False
    """Whether the exit code is 1."""

    def compare(self, condition: str) -> list[dict[str, Spread]]:
        """Ratios of the first side to each other one, by figure."""
        first, *others = (side.rounds[condition] for side in self.sides)
        return [compare_rounds(self.metrics, first, other) for other in others]


def run_and_publish(work: Coroutine[Any, Any, Result], json_path: Path | None) -> int:
    """Measures, writes the report and JSON; returns 0, 1 (requests failed), or 128 + signal."""
    try:
        result = run_interruptibly(work)
    except Interrupted as interrupted:
        return interrupted.exit_code
    is_piped = json_path == Path("-")
    _write_report(result, sys.stderr if is_piped else sys.stdout)
    if json_path is not None:
        text = encode_result(result)
        sys.stdout.write(text) if is_piped else json_path.write_text(text, encoding="utf-8")
    return 1 if result.has_failed else 0


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
    return msgspec.json.format(msgspec.json.encode(content, enc_hook=str), indent=2).decode() + "\n"


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
    """What influences figures; those of different machines cannot be compared."""
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
    stream.writelines(f"{line}\n" for line in (*lines, "", *result.problems))


def _table(result: Result, condition: str) -> list[list[str]]:
    """A row for each figure that at least one side has: all sides, then the ratios of the first to others."""
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
    """`median (min-max)`."""
    if spread is None:
        return "-"
    middle, least, most = map(_format_figure, spread)
    return middle if spread.min == spread.max else f"{middle} ({least}-{most})"


def _format_figure(value: float) -> str:
    """About three digits, no exponent."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
