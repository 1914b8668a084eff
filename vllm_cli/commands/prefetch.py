"""`vllm-cli prefetch`: downloads a start's missing files, and reads all its files into the page cache."""

import json
import logging
from typing import Any, Final

import click

from base.exit_codes import NO_ACCESS, NO_SPACE, OK, START_FAILED
from envs.registry import env
from startup.arguments.errors import InputError
from startup.arguments.option import ServeFlagsCommand, complete_model
from startup.arguments.serve_command import request_of
from startup.errors import ModelNotFoundError
from startup.files.download.messages import DownloadError
from startup.files.download.obtain import resolve_model
from startup.files.model.file_plan import FilePlan, plan_files
from startup.files.prefetch.messages import NUM_THREADS, PrefetchProgress, PrefetchReport
from startup.files.prefetch.prefetch_process import PrefetchHandle, start_prefetch
from startup.logs.options import LogOptions
from startup.logs.setup import configure_logging
from startup.reports.timeline.live_line import LiveLine, draw_bar
from vllm_cli.terminal import Reporter

_PROGRESS_S: Final = 0.1
_HEARTBEAT_S: Final = 5.0
_NOT_READ: Final = 1
_FAILURES: Final = {"refused": ("no_access", NO_ACCESS), "disk": ("no_space", NO_SPACE)}
"""Kind of a `DownloadError` -> state and exit code. The state of other kinds is `incomplete`."""

_HELP = """Download the files of MODEL that are missing or have changed, then read MODEL into the page cache.

Accepts every flag of `vllm-cli serve`. Give the flags of the later start, also `--engine vllm`. The files are those
that this start will read, with its tokenizer, adapters and draft model. Skips resident pages, and reads no more
than fits in memory. Reads nothing for load formats that do not use the page cache. `serve` does the same during
its start. This command is for init containers, for several starts, and to measure a disk.

\b
Examples:
  vllm-cli prefetch Qwen/Qwen3-0.6B --revision main
  vllm-cli prefetch org/model --engine vllm --download-dir /models --download-only
  vllm-cli prefetch /models/llama --threads 16 --json

Exit codes: 0 done; 1 a file could not be read; 2 usage; 3 files are missing: the hub cannot be reached or failed,
or MODEL is nowhere; 5 no access: gated, private, or no such model or revision; 6 no space on the disk.
"""


@click.command(
    "prefetch",
    cls=ServeFlagsCommand,
    help=_HELP,
    context_settings={"max_content_width": 120},
    options_metavar="[OPTIONS] [SERVE FLAGS]",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[MODEL]", shell_complete=complete_model)
@click.option("--download-only", is_flag=True, help="Do not read the files into the page cache.")
@click.option(
    "--threads",
    type=click.IntRange(1, 64),
    default=NUM_THREADS,
    show_default=True,
    help="Threads that read.",
)
@click.option("--json", "is_json", is_flag=True, help="Print the report as JSON.")
def prefetch(*, arguments: tuple[str, ...], download_only: bool, threads: int, is_json: bool) -> int:
    """Runs the command. Returns the exit code."""
    request = request_of(arguments, command="vllm-cli prefetch")
    if request.engine == "vllm" and request.model is None:
        raise InputError("MODEL is missing: with --engine vllm, name the model first.")
    before = plan_files(request)
    if before.model.kind == "vllm":
        reason = f"vLLM reads {before.model.name} itself"
        click.echo(json.dumps({"state": "off", "reason": reason}, indent=2) if is_json else f"nothing to do: {reason}")
        return OK
    reporter = Reporter(interval_s=_HEARTBEAT_S)
    _configure_logs(reporter.line)
    try:
        resolve_model(request, reporter.line.show)
    except ModelNotFoundError as err:
        return _fail(err, is_json=is_json)
    plan = plan_files(request)
    fields = _fields(plan, before)
    if download_only:
        click.echo(json.dumps(fields, indent=2) if is_json else f"on disk: {fields['folder']}")
        return OK
    with start_prefetch(plan.prefetched, "on", num_threads=threads, progress_interval_s=_PROGRESS_S) as handle:
        report = _follow(handle, reporter)
    click.echo(json.dumps(fields | _report_fields(report), indent=2) if is_json else str(report))
    return _NOT_READ if report.state == "failed" or report.problems else OK


def _configure_logs(line: LiveLine) -> None:
    configure_logging(LogOptions(level=env.VLLM_LOGGING_LEVEL.get()), role="prefetch")
    for handler in logging.getLogger().handlers:
        line.erase_for(handler)


def _fail(err: ModelNotFoundError, *, is_json: bool) -> int:
    """Prints why the files are not on disk. Returns the exit code."""
    state, code = _FAILURES.get(err.kind if isinstance(err, DownloadError) else "", ("incomplete", START_FAILED))
    if is_json:
        click.echo(json.dumps({"state": state, "reason": str(err)}, indent=2))
    click.echo(f"Error: {err}", err=True)
    return code


def _follow(handle: PrefetchHandle, reporter: Reporter) -> PrefetchReport:
    """Shows progress until the prefetch ends."""
    for progress in handle.progress():
        reporter.update(f"prefetch {draw_bar(progress.share)} {_describe(progress)}")
    reporter.close()
    report = handle.result()
    assert report is not None
    return report


def _describe(progress: PrefetchProgress) -> str:
    text = f"{progress.done_bytes / 1e9:.2f} of {progress.due_bytes / 1e9:.2f} GB, {progress.gb_per_s:.2f} GB/s"
    return text if progress.eta_s is None else f"{text}, {progress.eta_s:.0f} s left"


def _fields(plan: FilePlan, before: FilePlan) -> dict[str, Any]:
    downloaded = [
        old.name
        for old, new in zip(before.places, plan.places, strict=True)
        if before.is_downloaded(old) and not (old.is_of_branch and old.folder == new.folder)
    ]
    of_branch = [place for place in plan.places if place.is_of_branch]
    commits = {place.name: place.folder.name for place in of_branch if place.folder}
    return {
        "model": plan.model.name,
        "folder": str(plan.model.folder),
        "num_files": len(plan.read_order),
        "downloaded": downloaded,
        "commits": commits,
        "state": "done",
    }


def _report_fields(report: PrefetchReport) -> dict[str, Any]:
    return report._asdict() | {
        "resident_share": None if report.resident_share is None else round(report.resident_share, 4),
        "gb_per_s": round(report.gb_per_s, 3),
    }
