"""`make figures`: runs the headline benchmarks on this machine, and writes the pages that show them.

No other program may run on the machine. When a benchmark (a step) ends, its result is written to today's JSON
file of this machine. An interrupted run can be continued with `--only NAME` or `--missing`. At the end, the
pages with figures are written from all JSON files.

With `--hook` or `--hooks`, the steps measure what parts of a start save (`leave_out.py`).
"""

import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

import click

from startup.hook import TimedStart
from tools.figures.gains import all_parts
from tools.figures.leave_out import build_step, choose, leave_out_impossible
from tools.figures.pages import write_pages
from tools.figures.record import ROOT, Record, add_files
from tools.figures.running import Step, make_large_model, run_step
from tools.figures.steps import Steps

_NAMES = [step.name for step in Steps(ROOT, Path("/nowhere"))]
_STARTS = get_args(TimedStart)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--only", "names", multiple=True, type=click.Choice(_NAMES), help="Run only these steps.")
@click.option("--missing", "is_missing", is_flag=True, help="Run only steps that have not passed today.")
@click.option("--minutes", default=180.0, help="Steps that do not fit in this time are left out.")
@click.option("--write", "is_write", is_flag=True, help="Only write the pages.")
@click.option("--hook", "parts", multiple=True, metavar="NAME", help="Instead, measure starts without this part.")
@click.option("--hooks", "are_all", is_flag=True, help="Instead, measure all parts that make a start faster.")
@click.option("--start", "starts", multiple=True, type=click.Choice(_STARTS), help="With --hook: only these starts.")
@click.option("--rounds", default=5, help="With --hook: starts with the part, and as many without it.")
@click.option("--add", type=Path, help="Only add the files of this folder, which `make test-gpu` wrote, to the pages.")
def main(
    names: tuple[str, ...],
    is_missing: bool,
    minutes: float,
    is_write: bool,
    parts: tuple[str, ...],
    are_all: bool,
    starts: tuple[TimedStart, ...],
    rounds: int,
    add: Path | None,
) -> None:
    """Run all steps, then write the pages."""
    if add is not None:
        add_files(add)
        write_pages()
        return
    if unknown := set(parts) - {name for name, part in all_parts().items() if not part.is_essential}:
        raise click.BadParameter(f"no hooks or parts of a start that can be left out: {', '.join(sorted(unknown))}")
    if starts and not (parts or are_all):
        raise click.BadParameter("--start needs --hook or --hooks")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the step that runs
    with tempfile.TemporaryDirectory(prefix="vllm-cli-figures-") as folder:
        steps = Steps(ROOT, Path(folder))
        chosen = [step for step in steps if not names or step.name in names]
        if parts or are_all:
            known = all_parts().values()
            measured = [part for part in known if part.name in parts or (are_all and (part.gain_in or starts))]
            choices = leave_out_impossible(choose(measured, starts))
            chosen = [build_step(choice, rounds, steps.tool, steps.work) for choice in choices]
        failed = [] if is_write else run_steps(steps, chosen, is_missing, minutes)
    write_pages()
    if failed:
        click.echo(f"failed: {'; '.join(failed)}", err=True)
        sys.exit(1)


def run_steps(steps: Steps, chosen: list[Step], is_missing: bool, minutes: float) -> list[str]:
    """Returns the names of the chosen steps that did not pass."""
    end_s = time.monotonic() + minutes * 60
    failed = []
    record = Record()
    for step in chosen:
        if is_missing and record.has_passed(step.name):
            continue
        if str(steps.large_model) in " ".join(step.words):
            make_large_model(steps.large_model, ROOT / ".peers" / "model")
        entry = run_step(step, min(step.most_s, end_s - time.monotonic()), folder=steps.work)
        record.add(entry, steps.work)
        failed += [step.name] if entry["exit_code"] != 0 else []
        click.echo(f"{step.name}: {entry['outcome']} in {entry['seconds']:.0f} s", err=True)
    return failed


if __name__ == "__main__":
    main()
