"""`make gpu-stub-starts`: times our starts and plain starts of vLLM's CUDA build on the stand-in for a GPU.

**No kernel runs**, so all times are those of the processor. The result is a JSON file with all rounds, and a
table of medians. No other program may run on the machine during the measurement.
"""

import json
import signal
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from tests.gpu_stub.gpu_server import EAGER, PYTHON, GpuServer
from tests.support.program import Program
from tests.support.standby_process import OFF
from tools.gpu_figures import describe_machine
from vllm_cli.bench.phases import divide, follow_log

_START_S: Final = 1200.0
_SETTLED_S: Final = 6.0
"""Seconds for which an unmeasured start continues after its first answer, to write its files."""


class Case(NamedTuple):
    """One configuration whose starts are timed."""

    words: tuple[str, ...] = EAGER
    gpus: int = 1
    launcher: str = "ours"
    """`ours`: our cold start. `warm`: our start beside a standby."""
    is_first: bool = False
    """Whether each start has an empty home folder."""
    has_location: bool = False
    """Whether our starts have a `--compile-cache` that another start has filled."""


class _TimedServer(GpuServer):
    poll_s = 0.02
    begun_s: float
    """The time of the wall clock when the command began."""
    begun_ns: int
    """The time of the monotonic clock when the command began."""

    def start(self) -> None:
        self.begun_s, self.begun_ns = time.time(), time.monotonic_ns()
        super().start()


class Start(NamedTuple):
    """The times of a start, in seconds since its command began. `stop` has the seconds since SIGTERM."""

    cuda: float
    """When the last process had initialized CUDA."""
    healthy: float
    answer: float
    stop: float
    phases_s: Mapping[str, float]
    """The phases of the start until the answer, as in `bench startup`."""


FIGURES: Final = Start._fields[:-1]


_COMPILED: Final = EAGER[1:]
CASES: Final = {
    "eager, later": Case(),
    "eager, beside a standby": Case(launcher="warm"),
    "TP 3 eager, later": Case((*EAGER, "--tensor-parallel-size", "3"), gpus=3),
    "DP 2 eager, later": Case((*EAGER, "--data-parallel-size", "2"), gpus=2),
    "PP 2 eager, later": Case((*EAGER, "--pipeline-parallel-size", "2"), gpus=2),
    "compiled, later": Case(_COMPILED),
    "compiled, beside a standby": Case(_COMPILED, launcher="warm"),
    "compiled, first": Case(_COMPILED, is_first=True),
    "compiled, --compile-cache": Case(_COMPILED, is_first=True, has_location=True),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "output", default="build/gpu-stub-starts.json", show_default=True, help="File for the result.")
@click.option("--rounds", default=3, show_default=True, help="Measured starts of each side.")
@click.option("--case", "names", multiple=True, type=click.Choice([*CASES]), help="Only these cases.")
def main(output: str, rounds: int, names: tuple[str, ...]) -> None:
    """Run all cases."""
    click.echo(f"| case | rounds | {' | '.join(FIGURES)}: vllm serve; vllm-cli: ratio |")
    result: dict[str, Any] = {"no kernel runs": True, "machine": describe_machine(str(PYTHON)), "cases": {}}
    for name in names or CASES:
        with tempfile.TemporaryDirectory() as folder:
            sides = time_case(CASES[name], rounds, Path(folder))
        result["cases"][name] = {side: [start._asdict() for start in starts] for side, starts in sides.items()}
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(json.dumps(result, indent=1) + "\n")
        click.echo(describe(name, sides["plain"], sides["ours"]))


def time_case(case: Case, rounds: int, folder: Path) -> dict[str, list[Start]]:
    """Times both sides in turns, after an unmeasured start of each. Every second round is in reverse."""
    launchers = {"plain": "plain", "ours": case.launcher}
    location = ("--compile-cache", str(folder / "location")) if case.has_location else ()
    if not case.is_first:
        for side in launchers:
            time_start(case, side, folder / side, settle_s=_SETTLED_S)
    elif location:
        time_start(case, "ours", folder / "fills-the-location", *location, settle_s=_SETTLED_S)
    sides: dict[str, list[Start]] = {"plain": [], "ours": []}
    for number in range(rounds):
        for side in [*launchers][:: -1 if number % 2 else 1]:
            home = folder / (f"{side}-{number}" if case.is_first else side)
            words = location if side == "ours" else ()
            sides[side].append(time_start(case, launchers[side], home, *words))
            click.echo(f"  {side}: {sides[side][-1]}", err=True)
    return sides


def time_start(case: Case, launcher: str, home: Path, *words: str, settle_s: float = 1.0) -> Start:
    """Times one start until its first answer, and the stop by SIGTERM."""
    home.mkdir(exist_ok=True)
    variables = {"STUB_GPUS": str(case.gpus), **(OFF if launcher == "ours" else {})}
    with _TimedServer(launcher, *case.words, *words, folder=home, environment=variables) as server:
        assert server.log_path is not None
        with follow_log(server.log_path) as log:
            Program.wait(server, lambda: server.health() == 200, _START_S)
            healthy = time.time() - server.begun_s
            server.generate()
            answer = time.time() - server.begun_s
        time.sleep(settle_s)
        cuda = max(server.initialized().values()) - server.begun_s
        signal_s = time.time()
        server.terminate(signal.SIGTERM)
        stop = time.time() - signal_s
    ends_s = {name: (end_ns - server.begun_ns) / 1e9 for name, end_ns in log.ends_ns.items()}
    phases_s = {name: round(seconds, 2) for name, seconds in divide(ends_s | {"server": healthy}, answer).items()}
    return Start(*(round(seconds, 2) for seconds in (cuda, healthy, answer, stop)), phases_s)


def describe(name: str, plain: list[Start], ours: list[Start]) -> str:
    """A row of a table in Markdown: medians of both sides, and their ratios."""
    cells = [name, str(len(ours))]
    for field in FIGURES:
        theirs, own = (statistics.median(getattr(start, field) for start in starts) for starts in (plain, ours))
        cells.append(f"{theirs:.1f}; {own:.1f} s: {own / theirs:.2f}")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
