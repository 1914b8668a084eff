"""`vllm-cli timeline`: shows the report of a start as text or JSON."""

import json
from pathlib import Path
from typing import BinaryIO

import click

from startup.reports.timeline.report import ReportError, StartReport, read_report
from startup.words.errors import InputError


@click.command("timeline")
@click.argument("file", type=click.File("rb"))
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
def timeline(file: BinaryIO, is_json: bool) -> None:
    """Show the phases of a start. FILE is a report of `serve --startup-report`, or - for standard input.

    At each moment, the start waits for exactly one phase. So the phases add up to the whole time.

    \b
    Examples:
      vllm-cli serve --startup-report start.json
      vllm-cli timeline start.json
      curl -s localhost:8000/startupz | vllm-cli timeline -

    Exit codes: 0 done; 2 the file is not a report.
    """
    name = "standard input" if file.name == "<stdin>" else Path(file.name).name
    try:
        report = read_report(file.read().decode())
    except (UnicodeDecodeError, ReportError) as err:
        reason = "it is not text" if isinstance(err, UnicodeDecodeError) else err
        raise InputError(f"{name} is not a start-up report: {reason}.") from err
    click.echo(json.dumps(report.to_dict(), indent=2) if is_json else f"{name}: {_describe(report)}\n{report.table()}")


def _describe(report: StartReport) -> str:
    """Model, start method, outcome, versions and page cache on one line."""
    parts = [report.model, f"start method {report.start_method}", _describe_end(report)]
    parts += [f"{package} {version}" for package, version in report.versions.items()]
    if report.page_cache:
        parts.append(f"{report.page_cache.resident_share:.0%} of the weights in memory")
    return ", ".join([*parts, report.created_at])


def _describe_end(report: StartReport) -> str:
    if report.outcome == "failed":
        return f"failed after {report.total_s:.2f} s ({report.error})"
    return f"{report.outcome} after {report.total_s:.2f} s, {report.explained_share:.1%} explained"
