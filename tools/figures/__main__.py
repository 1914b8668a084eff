"""`make figures`: runs the headline benchmarks on this machine, and writes the pages that show them.

No other program may run on the machine. When a benchmark (a step) ends, its result is written to today's JSON
file of this machine. An interrupted run can be continued with `--only NAME` or `--missing`. At the end, the
figures in README, docs/figures.md and docs/start.svg are written from all JSON files.
"""

import signal
import sys
import tempfile
import time
from pathlib import Path

import click

from tools.figures.pages import write_pages
from tools.figures.record import ROOT, Record, add_files
from tools.figures.running import make_large_model, run_step
from tools.figures.steps import Steps

_NAMES = [step.name for step in Steps(ROOT, Path("/nowhere"))]


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--only", "names", multiple=True, type=click.Choice(_NAMES), help="Run only these steps.")
@click.option("--missing", "is_missing", is_flag=True, help="Run only steps that have not passed today.")
@click.option("--minutes", default=180.0, help="Steps that do not fit in this time are left out.")
@click.option("--write", "is_write", is_flag=True, help="Only write the pages.")
@click.option("--add", type=Path, help="Only add the files of this folder, which `make test-gpu` wrote, to the pages.")
def main(names: tuple[str, ...], is_missing: bool, minutes: float, is_write: bool, add: Path | None) -> None:
    """Run all steps, then write the pages."""
    if add is not None:
        add_files(add)
        write_pages()
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the step that runs
    failed = [] if is_write else run_steps(names, is_missing, minutes)
    write_pages()
    if failed:
        click.echo(f"failed: {'; '.join(failed)}", err=True)
        sys.exit(1)


def run_steps(names: tuple[str, ...], is_missing: bool, minutes: float) -> list[str]:
    """Returns the names of the steps that did not pass."""
    end_s = time.monotonic() + minutes * 60
    failed = []
    record = Record()
    with tempfile.TemporaryDirectory(prefix="vllm-cli-figures-") as folder:
        work = Path(folder)
        steps = Steps(ROOT, work)
        for step in steps:
            if (names and step.name not in names) or (is_missing and record.has_passed(step.name)):
                continue
            if str(steps.large_model) in " ".join(step.words):
                make_large_model(steps.large_model, ROOT / ".peers" / "model")
            entry = run_step(step, min(step.most_s, end_s - time.monotonic()), folder=work)
            record.add(entry, work)
            failed += [step.name] if entry["exit_code"] != 0 else []
            click.echo(f"{step.name}: {entry['outcome']} in {entry['seconds']:.0f} s", err=True)
    return failed


if __name__ == "__main__":
    main()
