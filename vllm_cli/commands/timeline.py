"""`vllm-cli timeline`: shows the report of a start as text, chart or JSON, or compares two reports."""

import json
import sys
from pathlib import Path

import click

from startup.timeline.report import ReportError, StartReport, read_report
from vllm_cli.errors import InputError
from vllm_cli.timeline.comparison import comparison_to_dict, write_comparison
from vllm_cli.timeline.page import NamedReport, describe_start, draw_timeline

_REPORT_FILE = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
_CHART_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


@click.command("timeline")
@click.argument("file", type=_REPORT_FILE)
@click.argument("other", type=_REPORT_FILE, required=False)
@click.option(
    "--html", "html_path", type=_CHART_FILE, metavar="FILE", help="Write a self-contained web page with a chart."
)
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
def timeline(file: Path, other: Path | None, html_path: Path | None, is_json: bool) -> None:
    """Show the phases of a start: FILE is the output of `serve --startup-report FILE`, - is standard input.

    At each moment the start waits for one phase, so the phases add up to the whole. With OTHER, the two
    starts are compared phase by phase; the change is OTHER minus FILE.

    \b
    Examples:
      vllm-cli serve --startup-report start.json
      vllm-cli timeline start.json --html start.html
      vllm-cli timeline before.json after.json
      curl -s localhost:8000/startupz | vllm-cli timeline -

    Exit codes: 0 done, 2 a file is not a report.
    """
    starts = [_read(path) for path in (file, other) if path is not None]
    if html_path:
        _write(html_path, draw_timeline(starts))
    if is_json:
        click.echo(_to_json([start.report for start in starts]), nl=False)
    elif not html_path:
        click.echo("\n".join(_describe(starts)))


def _read(path: Path) -> NamedReport:
    is_piped = path == Path("-")
    name = "standard input" if is_piped else path.name
    try:
        text = sys.stdin.read() if is_piped else path.read_text(encoding="utf-8")
        return NamedReport(name, read_report(text))
    except OSError as err:
        raise InputError(f"{path} cannot be read: {err.strerror}.") from err
    except UnicodeDecodeError as err:
        raise InputError(f"{name} is not a start-up report: it is not text.") from err
    except ReportError as err:
        raise InputError(f"{name} is not a start-up report: {err}.") from err


def _write(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as err:
        raise InputError(f"--html: {path} cannot be written: {err.strerror}.") from err


def _to_json(reports: list[StartReport]) -> str:
    if len(reports) == 1:
        return reports[0].to_json()
    return json.dumps(comparison_to_dict(*reports), indent=2) + "\n"


def _describe(starts: list[NamedReport]) -> list[str]:
    lines = [describe_start(start) for start in starts]
    if len(starts) == 1:
        return [*lines, starts[0].report.table()]
    return [*lines, *write_comparison(starts[0].report, starts[1].report)]
