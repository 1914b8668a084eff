"""`make gpu-stub-starts`: times our starts and plain starts of vLLM's CUDA build on the stand-in for a GPU.

On the stand-in **no kernel runs**, so all times are those of the processor. `--gpu` uses the machine's own
GPU. The result is a JSON file with all rounds, and a table of medians. No other program may run during the
measurement.
"""

import json
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from tests.gpu_stub.gpu_router import PREFIX
from tests.gpu_stub.gpu_server import EAGER, MODEL, PYTHON, gpu_variables
from tests.support.standby_process import OFF
from tools.figures.processor_time import adopt_orphans
from tools.figures.running import describe_machine
from tools.figures.timed_start import (
    COMPILED,
    SETTLED_S,
    START_S,
    Case,
    Homes,
    OnCpu,
    OnGpu,
    OnStandIn,
    Start,
    TimedServer,
    time_start,
)


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


FIGURES: Final = ("cuda", "healthy", "answer", "processor", "stop")


CASES: Final = {
    "eager, later": Case(),
    "eager, beside a standby": Case(launcher="warm"),
    "TP 3 eager, later": Case((*EAGER, "--tensor-parallel-size", "3"), gpus=3),
    "DP 2 eager, later": Case((*EAGER, "--data-parallel-size", "2"), gpus=2),
    "PP 2 eager, later": Case((*EAGER, "--pipeline-parallel-size", "2"), gpus=2),
    "compiled, later": Case(COMPILED),
    "compiled, beside a standby": Case(COMPILED, launcher="warm"),
    "compiled, first": Case(COMPILED, is_first=True),
    "eager, first, without early kernels": Case(is_first=True, left_out="early kernels"),
    "eager, first": Case(is_first=True),
    "eager, --compile-cache": Case(is_first=True, has_location=True),
    "eager, after plain": Case(is_after_plain=True),
    "eager, volume": Case(has_volume=True),
    "compiled, --compile-cache": Case(COMPILED, is_first=True, has_location=True),
    "compiled, after plain": Case(COMPILED, is_after_plain=True),
    "compiled, volume": Case(COMPILED, has_volume=True),
    "eager, plugin": Case(has_plugin=True),
    "compiled, plugin": Case(COMPILED, has_plugin=True),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "output", default="build/gpu-stub-starts.json", show_default=True, help="File for the result.")
@click.option("--rounds", default=3, show_default=True, help="Measured starts of each side.")
@click.option("--case", "names", multiple=True, type=click.Choice([*CASES]), help="Only these cases.")
@click.option("--fleet", "is_fleet", is_flag=True, help="Instead, one start of a new pod with each remedy.")
@click.option("--gpu", "is_real", is_flag=True, help="Use the machine's own GPU.")
@click.option("--cpu", "is_for_cpu", is_flag=True, help="Use vLLM's build for CPU.")
@click.option("--vllm", default=str(PYTHON.parent), help="Folder with vLLM's Python and `vllm`.")
@click.option("--model", default=str(MODEL), help="Folder of the model.")
def main(
    output: str,
    rounds: int,
    names: tuple[str, ...],
    is_fleet: bool,
    is_real: bool,
    is_for_cpu: bool,
    vllm: str,
    model: str,
) -> None:
    """Run all cases. Cases whose starts are not the first share the caches that their first starts fill."""
    adopt_orphans()
    OnGpu.model, OnGpu.python = Path(model).absolute(), Path(vllm).absolute() / "python"
    server: type[TimedServer] = OnGpu if is_real else OnCpu if is_for_cpu else OnStandIn
    if is_fleet:
        write_fleet(Path(output))
        return
    click.echo(f"| case | rounds | {' | '.join(FIGURES)}: vllm serve; vllm-cli: ratio |")
    result: dict[str, Any] = {"no kernel runs": server is OnStandIn, "machine": describe_machine(str(server.python))}
    result["cases"] = {}
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        shared = {case.first_name: Path(stack.enter_context(tempfile.TemporaryDirectory())) for case in CASES.values()}
        for name in names or CASES:
            case = CASES[name]
            with tempfile.TemporaryDirectory() as own:
                folder = Path(own) if case.needs_own_folder else shared[case.first_name]
                found = TimedCase(server, name, folder).time(rounds)
            for each, sides in found.items():
                if each == name or each not in result["cases"]:
                    result["cases"][each] = {side: [start._asdict() for start in all] for side, all in sides.items()}
                click.echo(describe(each, sides))
            Path(output).write_text(json.dumps(result, indent=1) + "\n")


def write_fleet(output: Path) -> None:
    """Times the first start of a new pod with each remedy, and writes the seconds and sizes."""
    result: dict[str, Any] = {"no kernel runs": True, "machine": describe_machine(str(PYTHON))}
    output.parent.mkdir(parents=True, exist_ok=True)
    for kind, arguments in {"eager": EAGER, "compiled": COMPILED}.items():
        with tempfile.TemporaryDirectory() as folder:
            result[kind] = time_remedies(arguments, Path(folder))
        output.write_text(json.dumps(result, indent=1) + "\n")


def time_remedies(arguments: tuple[str, ...], folder: Path) -> dict[str, dict[str, Any]]:
    """Times one start with each remedy, and plain starts in the same state."""
    baked, location, volume = (folder / name for name in ("baked", "location", "volume"))
    _bake(folder / "builder", *arguments, "--output", str(baked))
    _bake(folder / "filler", *arguments, "--compile-cache", str(location))
    case = Case(arguments)
    plain = [time_start(OnStandIn, case, "plain", folder / "plain", settle_s=SETTLED_S) for _ in range(2)]
    found: dict[str, dict[str, Any]] = {}
    for name, remedy in REMEDIES.items():
        folders = [baked] * remedy.is_baked + [location] * remedy.has_location + [volume] * remedy.has_volume
        size_bytes = sum(map(_size_of, folders))
        given = ("--compile-cache", str(location)) if remedy.has_location else ()
        variables = {"VCLI_BAKED": str(baked)} if remedy.is_baked else {}
        home = volume if remedy.has_volume or name == "nothing" else folder / f"pod with {name}"
        launcher = "warm" if remedy.has_standby else "ours"
        ours = time_start(OnStandIn, case, launcher, home, *given, settle_s=SETTLED_S, environment=variables)
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
    subprocess.run(command, env={**gpu_variables(home), **OFF}, check=True, timeout=START_S, cwd=home)


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


class TimedCase:
    """The starts of one case on both sides, which alternate. Every second round is in reverse.

    Our starts are compared with plain ones, or, if they have a volume, with our later starts on that volume.
    If they lack a part, they are compared with nothing.
    """

    def __init__(self, server: type[TimedServer], name: str, folder: Path) -> None:
        """`folder` keeps the homes, also those of other cases with the same first starts."""
        self._server, self._name, self._folder = server, name, folder
        self._case = CASES[name]
        self._homes = Homes(folder)
        peer = "later" if self._case.has_volume else "plain"
        launchers = {peer: "ours" if self._case.has_volume else "plain", "ours": self._case.launcher}
        self._launchers = {"ours": self._case.launcher} if self._case.left_out else launchers

    def time(self, rounds: int) -> dict[str, dict[str, list[Start]]]:
        """Returns the starts of this case. Adds the first starts that have filled its caches, if any."""
        found: dict[str, dict[str, list[Start]]] = {self._name: {side: [] for side in self._launchers}}
        first = self._prepare()
        if len(first) == len(self._launchers) and not self._case.needs_own_folder:
            found[self._case.first_name] = {side: [start] for side, start in first.items()}
        for number in range(rounds):
            for side in [*self._launchers][:: -1 if number % 2 else 1]:
                with self._home_of(side) as home:
                    found[self._name][side].append(self._start(side, home, self._launchers[side]))
                click.echo(f"  {side}: {found[self._name][side][-1]}", err=True)
        return found

    def _prepare(self) -> dict[str, Start]:
        """Fills caches that are not filled yet. Returns the first starts by side."""
        if self._case.has_location:
            with self._homes.use_once("fills-the-location") as home:
                self._start("ours", home, "ours", settle_s=SETTLED_S)
        first = {}
        for side in self._launchers:
            if self._keeps_home(side) and not self._homes.has(side):
                with self._homes.use(side) as home:
                    launcher = "plain" if side == "plain" else "ours"
                    first[side] = self._start(side, home, launcher, settle_s=SETTLED_S)
        if self._case.is_after_plain:
            self._homes.remove(_USED)
            self._homes.copy("plain", _USED)
        return first

    def _keeps_home(self, side: str) -> bool:
        """Whether all starts of the side have the same home."""
        is_ours_new = self._case.has_volume or self._case.is_after_plain
        return not (self._case.is_first or (side == "ours" and is_ours_new))

    @contextmanager
    def _home_of(self, side: str) -> Iterator[Path]:
        if self._keeps_home(side):
            with self._homes.use(side) as home:
                yield home
        else:
            with self._homes.use_once("new", _USED if self._case.is_after_plain else "") as home:
                yield home

    def _start(self, side: str, home: Path, launcher: str, settle_s: float = 1.0) -> Start:
        location = ("--compile-cache", str(self._folder / "location")) if self._case.has_location else ()
        variables = {"VLLM_CACHE_ROOT": str(self._folder / "volume")} if self._case.has_volume else {}
        return time_start(
            self._server,
            self._case,
            launcher,
            home,
            *(location if side == "ours" else ()),
            settle_s=settle_s,
            environment=variables,
        )


_USED: Final = "used by plain"
"""The home that plain vLLM's starts have left, before a start of ours changes a copy of it."""


def describe(name: str, sides: Mapping[str, list[Start]]) -> str:
    """A row of a table in Markdown: medians of both sides, and their ratios."""
    ours = sides["ours"]
    peers = next((starts for side, starts in sides.items() if side != "ours"), [])
    cells = [name, str(len(ours))]
    for field in FIGURES:
        theirs, own = (_median(field, starts) for starts in (peers, ours))
        ratio = f": {own / theirs:.2f}" if own and theirs else ""
        cells.append(f"{theirs or 0:.1f}; {own or 0:.1f} s{ratio}")
    return f"| {' | '.join(cells)} |"


def _median(field: str, starts: list[Start]) -> float | None:
    known = [getattr(start, field) for start in starts if getattr(start, field) is not None]
    return statistics.median(known) if known else None


if __name__ == "__main__":
    main()
