"""`make gpu-stub-starts`: times our starts and plain starts of vLLM's CUDA build on the stand-in for a GPU.

**No kernel runs**, so all times are those of the processor. The result is a JSON file with all rounds, and a
table of medians. No other program may run on the machine during the measurement.
"""

import json
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import click

from tests.gpu_stub.gpu_router import PREFIX
from tests.gpu_stub.gpu_server import EAGER, MODEL, PYTHON, GpuServer, gpu_variables
from tests.support.program import Program
from tests.support.standby_process import OFF
from tools.gpu_figures import describe_machine
from vllm_cli.bench.phases import divide, follow_log

_START_S: Final = 1200.0
_SETTLED_S: Final = 6.0
"""Seconds for which an unmeasured start continues after its first answer, to write its files."""


class Case(NamedTuple):
    """One configuration whose starts are timed."""

    arguments: tuple[str, ...] = EAGER
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


class Remedy(NamedTuple):
    """What a new pod finds."""

    has_volume: bool = False
    """Whether it has the home of an earlier pod."""
    has_location: bool = False
    """Whether it has a location that `bake --compile-cache` has filled."""
    is_baked: bool = False
    """Whether its image has the folder that `bake` has written."""
    has_standby: bool = False
    """Whether a standby whose imports are done runs beside it."""


REMEDIES: Final = {
    "nothing": Remedy(),
    "volume": Remedy(has_volume=True),
    "location": Remedy(has_location=True),
    "baked image": Remedy(is_baked=True),
    "image and location": Remedy(has_location=True, is_baked=True),
    "volume and standby": Remedy(has_volume=True, has_standby=True),
}


class Start(NamedTuple):
    """The times of a start, in seconds since its command began. `stop` has the seconds since SIGTERM."""

    cuda: float
    """When the last process had initialized CUDA."""
    healthy: float
    answer: float
    stop: float
    phases_s: Mapping[str, float]
    """The phases of the start until the answer, as in `bench startup`."""
    kernels: Mapping[str, float] | None = None
    """What our start reports about kernels: how many it has used, and how many the engine has compiled."""


FIGURES: Final = ("cuda", "healthy", "answer", "stop")


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
@click.option("--fleet", "is_fleet", is_flag=True, help="Instead, one start of a new pod with each remedy.")
def main(output: str, rounds: int, names: tuple[str, ...], is_fleet: bool) -> None:
    """Run all cases."""
    if is_fleet:
        write_fleet(Path(output))
        return
    click.echo(f"| case | rounds | {' | '.join(FIGURES)}: vllm serve; vllm-cli: ratio |")
    result: dict[str, Any] = {"no kernel runs": True, "machine": describe_machine(str(PYTHON)), "cases": {}}
    for name in names or CASES:
        with tempfile.TemporaryDirectory() as folder:
            sides = time_case(CASES[name], rounds, Path(folder))
        result["cases"][name] = {side: [start._asdict() for start in starts] for side, starts in sides.items()}
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(json.dumps(result, indent=1) + "\n")
        click.echo(describe(name, sides["plain"], sides["ours"]))


def write_fleet(output: Path) -> None:
    """Times the first start of a new pod with each remedy, and writes the seconds and sizes."""
    result: dict[str, Any] = {"no kernel runs": True, "machine": describe_machine(str(PYTHON))}
    output.parent.mkdir(parents=True, exist_ok=True)
    for kind, arguments in {"eager": EAGER, "compiled": _COMPILED}.items():
        with tempfile.TemporaryDirectory() as folder:
            result[kind] = time_remedies(arguments, Path(folder))
        output.write_text(json.dumps(result, indent=1) + "\n")


def time_remedies(arguments: tuple[str, ...], folder: Path) -> dict[str, dict[str, Any]]:
    """Times one start with each remedy, and plain starts in the same state."""
    baked, location, volume = (folder / name for name in ("baked", "location", "volume"))
    _bake(folder / "builder", *arguments, "--output", str(baked))
    _bake(folder / "filler", *arguments, "--compile-cache", str(location))
    case = Case(arguments)
    plain = [time_start(case, "plain", folder / "plain", settle_s=_SETTLED_S) for _ in range(2)]
    found: dict[str, dict[str, Any]] = {}
    for name, remedy in REMEDIES.items():
        folders = [baked] * remedy.is_baked + [location] * remedy.has_location + [volume] * remedy.has_volume
        size_bytes = sum(map(_size_of, folders))
        given = ("--compile-cache", str(location)) if remedy.has_location else ()
        variables = {"VCLI_BAKED": str(baked)} if remedy.is_baked else {}
        home = volume if remedy.has_volume or name == "nothing" else folder / f"pod with {name}"
        launcher = "warm" if remedy.has_standby else "ours"
        ours = time_start(case, launcher, home, *given, settle_s=_SETTLED_S, environment=variables)
        found[name] = {
            "plain_s": plain[remedy.has_volume].answer,
            "ours_s": ours.answer,
            "mib": round(size_bytes / (1 << 20)),
            "kernels": ours.kernels,
        }
        click.echo(f"  {name}: {found[name]}", err=True)
    return found


def _bake(home: Path, *arguments: str) -> None:
    """Runs `vllm-cli bake` on the stand-in, with a home of its own. Needs root, for a GPU's devices."""
    home.mkdir()
    command = [*PREFIX, PYTHON, "-m", "vllm_cli", "bake", MODEL, "--engine", "vllm", *arguments]
    subprocess.run(command, env={**gpu_variables(home), **OFF}, check=True, timeout=_START_S, cwd=home)


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


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
            arguments = location if side == "ours" else ()
            sides[side].append(time_start(case, launchers[side], home, *arguments))
            click.echo(f"  {side}: {sides[side][-1]}", err=True)
    return sides


def time_start(
    case: Case,
    launcher: str,
    home: Path,
    *arguments: str,
    settle_s: float = 1.0,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Start:
    """Times one start until its first answer, and the stop by SIGTERM."""
    home.mkdir(exist_ok=True)
    variables = {"STUB_GPUS": str(case.gpus), **(OFF if launcher == "ours" else {}), **environment}
    with _TimedServer(launcher, *case.arguments, *arguments, folder=home, environment=variables) as server:
        assert server.log_path is not None
        with follow_log(server.log_path) as log:
            Program.wait(server, lambda: server.health() == 200, _START_S)
            healthy = time.time() - server.begun_s
            server.generate()
            answer = time.time() - server.begun_s
        kernels = None if launcher == "plain" else server.get("/startupz")["kernels"]
        time.sleep(settle_s)
        cuda = max(server.initialized().values()) - server.begun_s
        signal_s = time.time()
        server.terminate(signal.SIGTERM)
        stop = time.time() - signal_s
    ends_s = {name: (end_ns - server.begun_ns) / 1e9 for name, end_ns in log.ends_ns.items()}
    phases_s = {name: round(seconds, 2) for name, seconds in divide(ends_s | {"server": healthy}, answer).items()}
    return Start(*(round(seconds, 2) for seconds in (cuda, healthy, answer, stop)), phases_s, kernels)


def describe(name: str, plain: list[Start], ours: list[Start]) -> str:
    """A row of a table in Markdown: medians of both sides, and their ratios."""
    cells = [name, str(len(ours))]
    for field in FIGURES:
        theirs, own = (statistics.median(getattr(start, field) for start in starts) for starts in (plain, ours))
        cells.append(f"{theirs:.1f}; {own:.1f} s: {own / theirs:.2f}")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
