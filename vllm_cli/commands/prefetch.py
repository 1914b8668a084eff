"""`vllm-cli prefetch`: reads a model into the page cache, so that a start finds it there."""

import json
import logging
import sys
from typing import Final

import click

from envs.registry import env
from startup.config import ModelConfig
from startup.logs.options import LogOptions
from startup.logs.setup import configure_logging
from startup.model.location import resolve_model
from startup.model.prefetch_plan import plan_files
from startup.prefetch.messages import PrefetchProgress, PrefetchReport
from startup.prefetch.options import MAX_BLOCK_BYTES, MAX_THREADS, MIN_BLOCK_BYTES, PrefetchOptions
from startup.prefetch.process import PrefetchHandle, start_prefetch
from startup.timeline.live_line import LiveLine, draw_bar
from vllm_cli.flags.option import complete_model
from vllm_cli.flags.param_types import ByteSize

_DEFAULTS: Final = PrefetchOptions()
_REDRAW_S: Final = 0.1
_HEARTBEAT_S: Final = 5.0
_FAILED: Final = 1

_HELP = """Read MODEL, a folder or a Hugging Face id, into the page cache.

Skips resident pages, and reads no more than fits in memory. `vllm-cli serve` does the same during its start;
this command is useful before several starts, or to measure a disk. Without MODEL, it reads
SmolLM2-135M-Instruct.
Exit code 1: a file could not be read.

\b
Examples:
  vllm-cli prefetch
  vllm-cli prefetch Qwen/Qwen3-0.6B --threads 16
  vllm-cli prefetch /models/llama --json
"""


@click.command("prefetch", help=_HELP)
@click.argument("model", required=False, shell_complete=complete_model)
@click.option("--revision", help="Branch, tag or commit of the model on the hub.")
@click.option(
    "--download-dir", metavar="FOLDER", help="Cache folder for models from the hub; HF_HUB_CACHE if not given."
)
@click.option(
    "--threads",
    type=click.IntRange(1, MAX_THREADS),
    default=_DEFAULTS.num_threads,
    show_default=True,
    help="Threads that read.",
)
@click.option(
    "--block-size",
    type=ByteSize(),
    default="16MiB",
    show_default=True,
    help="Bytes that a thread reads at once, from 64KiB to 1GiB.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def prefetch(  # noqa: PLR0913 - options are its arguments
    *, model: str | None, revision: str | None, download_dir: str | None, threads: int, block_size: int, as_json: bool
) -> int:
    """Returns the exit code."""
    if not MIN_BLOCK_BYTES <= block_size <= MAX_BLOCK_BYTES:
        raise click.BadParameter(f"{block_size} bytes are not between 64KiB and 1GiB.", param_hint="--block-size")
    line = LiveLine(sys.stderr)
    options = PrefetchOptions(
        mode="on",
        num_threads=threads,
        block_bytes=block_size,
        progress_interval_s=_REDRAW_S if line.is_on else _HEARTBEAT_S,
    )
    configure_logging(LogOptions(level=env.VLLM_LOGGING_LEVEL.get()), role="prefetch")
    for handler in logging.getLogger().handlers:
        line.erase_for(handler)
    files = resolve_model(ModelConfig(model=model, revision=revision, download_dir=download_dir), line.show)
    with start_prefetch(plan_files(files), options) as handle:
        report = _follow(handle, line)
    click.echo(_as_json(report) if as_json else str(report))
    return _FAILED if report.state == "failed" or report.problems else 0


def _follow(handle: PrefetchHandle, line: LiveLine) -> PrefetchReport:
    """Shows progress until the end: a bar on a terminal, elsewhere a line at intervals."""
    for progress in handle.progress():
        text = _describe(progress)
        if line.is_on:
            line.show(f"prefetch {draw_bar(progress.share)} {text}")
        elif progress.elapsed_s >= _HEARTBEAT_S:
            click.echo(f"prefetch: {text}", err=True)
    line.close()
    return handle.result() or PrefetchReport("failed", "the helper process ended without a report")


def _describe(progress: PrefetchProgress) -> str:
    text = f"{progress.done_bytes / 1e9:.2f} of {progress.due_bytes / 1e9:.2f} GB, {progress.gb_per_s:.2f} GB/s"
    return text if progress.eta_s is None else f"{text}, {progress.eta_s:.0f} s left"


def _as_json(report: PrefetchReport) -> str:
    fields = report._asdict() | {
        "resident_share": round(report.resident_share, 4),
        "gb_per_s": round(report.gb_per_s, 3),
    }
    return json.dumps(fields, indent=2)
