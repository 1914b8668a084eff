"""`vllm-cli timeline`: shows the report of a start as text or JSON, or compares two reports."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click

from startup.timeline.report import ReportError, StartReport, read_report
from vllm_cli.errors import InputError

_REPORT_FILE = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)


@click.command("timeline")
@click.argument("file", type=_REPORT_FILE)
@click.argument("other", type=_REPORT_FILE, required=False)
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
def timeline(file: Path, other: Path | None, is_json: bool) -> None:
    """Show the phases of a start: FILE is the output of `serve --startup-report FILE`, - is standard input.

    At each moment the start waits for one phase, so the phases add up to the whole. With OTHER, the two
    starts are compared phase by phase; the change is OTHER minus FILE.

    \b
    Examples:
      vllm-cli serve --startup-report start.json
      vllm-cli timeline start.json
      vllm-cli timeline before.json after.json
      curl -s localhost:8000/startupz | vllm-cli timeline -

    Exit codes: 0 done, 2 a file is not a report.
    """
    report, later = _read(file), None if other is None else _read(other)
    if is_json:
        click.echo(json.dumps(report.to_dict() if later is None else _compare(report, later), indent=2))
        return
    click.echo(_describe_start(file, report))
    if other is None or later is None:
        click.echo(report.table())
    else:
        click.echo(_describe_start(other, later))
        click.echo("\n".join(_table(report, later)))


def _name(path: Path) -> str:
    return "standard input" if path == Path("-") else path.name


def _read(path: Path) -> StartReport:
    name = _name(path)
    try:
        return read_report(sys.stdin.read() if path == Path("-") else path.read_text(encoding="utf-8"))
    except OSError as err:
        raise InputError(f"{path} cannot be read: {err.strerror}.") from err
    except UnicodeDecodeError as err:
        raise InputError(f"{name} is not a start-up report: it is not text.") from err
    except ReportError as err:
        raise InputError(f"{name} is not a start-up report: {err}.") from err


def _describe_start(path: Path, report: StartReport) -> str:
    """Model, start method, outcome, versions and page cache in one line."""
    facts = report.facts
    parts = [f"{_name(path)}: {facts.model}", f"start method {facts.start_method}", _describe_end(report)]
    parts += [f"{package} {version}" for package, version in facts.versions.items()]
    if facts.page_cache:
        parts.append(f"{facts.page_cache.resident_share:.0%} of the weights in memory")
    return ", ".join([*parts, report.created_at])


def _describe_end(report: StartReport) -> str:
    if report.facts.outcome == "failed":
        return f"failed after {report.total_s:.2f} s ({report.facts.error})"
    return f"{report.facts.outcome} after {report.total_s:.2f} s, {report.explained_share:.1%} explained"


class _Difference(NamedTuple):
    """One phase of two starts; 0 s for a start without the phase."""

    process: str
    name: str
    before_s: float
    after_s: float


def _compare_phases(before: StartReport, after: StartReport) -> list[_Difference]:
    """Every phase of either start, in the first one's order; the differences add up to the totals'."""
    earlier = {phase.key: phase for phase in before.phases}
    later = {phase.key: phase for phase in after.phases}
    differences = []
    for key in dict.fromkeys((*earlier, *later)):
        phase = earlier.get(key) or later[key]
        times = [phases[key].took_s if key in phases else 0.0 for phases in (earlier, later)]
        differences.append(_Difference(phase.process, phase.name, *times))
    return differences


def _compare(before: StartReport, after: StartReport) -> dict[str, Any]:
    """The comparison for JSON."""
    return {
        "schema": "vllm-cli/startup-comparison",
        "schema_version": 1,
        "total_s": {"before": before.total_s, "after": after.total_s, "difference": after.total_s - before.total_s},
        "phases": [
            {**phase._asdict(), "difference_s": round(phase.after_s - phase.before_s, 6)}
            for phase in _compare_phases(before, after)
        ],
    }


def _table(before: StartReport, after: StartReport) -> Iterator[str]:
    """The comparison as text."""
    yield " before s   after s  change s  process     phase"
    for phase in _compare_phases(before, after):
        yield f"{_figures(phase.before_s, phase.after_s)}  {phase.process:<10}  {phase.name}"
    yield f"{_figures(before.total_s, after.total_s)}  total"


def _figures(before_s: float, after_s: float) -> str:
    return f"{before_s:9.3f} {after_s:9.3f} {after_s - before_s:+9.3f}"
