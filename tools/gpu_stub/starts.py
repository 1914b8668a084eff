"""`make gpu-stub-starts`: times our starts and plain starts of vLLM's CUDA build on the stand-in for a GPU.

On the stand-in **no kernel runs**, so all times are those of the processor. `--gpu` uses the machine's own
GPU. The result is a JSON file with all rounds, and a table of medians. No other program may run during the
measurement.
"""

import json
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Final, NamedTuple

import click

from tests.gpu_stub.gpu_router import PREFIX
from tests.gpu_stub.gpu_server import EAGER, MODEL, PYTHON, GpuServer, gpu_variables
from tests.support.program import Program
from tests.support.standby_process import OFF
from tests.vllm_engine.vllm_server import VllmServer
from tools.figures.running import describe_machine
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
    left_out: str = ""
    """A part that our starts leave out. Then plain vLLM does not start."""

    @property
    def first_name(self) -> str:
        """The name of the starts that fill the caches of this case's starts."""
        return f"{'eager' if EAGER[0] in self.arguments else 'compiled'}, first"


class _Timed(VllmServer):
    poll_s = 0.02
    begun_s: float
    """The time of the wall clock when the command began."""
    begun_ns: int
    """The time of the monotonic clock when the command began."""

    def start(self) -> None:
        self.begun_s, self.begun_ns = time.time(), time.monotonic_ns()
        super().start()

    def cuda_s(self) -> float | None:
        """When the last process had initialized CUDA, in seconds since the start. Only the stand-in knows."""
        return None


class _OnStandIn(_Timed, GpuServer):
    def cuda_s(self) -> float | None:
        return max(self.initialized().values()) - self.begun_s


class _OnGpu(_Timed):
    MAX_TOKENS = 1
    model: ClassVar[Path]
    _CACHES: Final = ("XDG_CACHE_HOME", "TRITON_CACHE_DIR", "FLASHINFER_WORKSPACE_BASE", "CUDA_CACHE_PATH")

    def __init__(self, launcher: str, *arguments: str, folder: Path, environment: dict[str, str]) -> None:
        caches = {name: str(folder / name.lower()) for name in self._CACHES}
        super().__init__(launcher, self.model, *arguments, folder=folder, environment=caches | environment)


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

    cuda: float | None
    """When the last process had initialized CUDA. None on a GPU."""
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
    "eager, first, without early kernels": Case(is_first=True, left_out="early kernels"),
    "compiled, --compile-cache": Case(_COMPILED, is_first=True, has_location=True),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "output", default="build/gpu-stub-starts.json", show_default=True, help="File for the result.")
@click.option("--rounds", default=3, show_default=True, help="Measured starts of each side.")
@click.option("--case", "names", multiple=True, type=click.Choice([*CASES]), help="Only these cases.")
@click.option("--fleet", "is_fleet", is_flag=True, help="Instead, one start of a new pod with each remedy.")
@click.option("--gpu", "is_real", is_flag=True, help="Use the machine's own GPU.")
@click.option("--vllm", default=str(PYTHON.parent), help="Folder with vLLM's Python and `vllm`.")
@click.option("--model", default=str(MODEL), help="Folder of the model.")
def main(
    output: str, rounds: int, names: tuple[str, ...], is_fleet: bool, is_real: bool, vllm: str, model: str
) -> None:
    """Run all cases. Cases whose starts are not the first share the caches that their first starts fill."""
    _OnGpu.model, _OnGpu.python = Path(model).absolute(), Path(vllm).absolute() / "python"
    server = _OnGpu if is_real else _OnStandIn
    if is_fleet:
        write_fleet(Path(output))
        return
    click.echo(f"| case | rounds | {' | '.join(FIGURES)}: vllm serve; vllm-cli: ratio |")
    result: dict[str, Any] = {"no kernel runs": not is_real, "machine": describe_machine(str(server.python))}
    result["cases"] = {}
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        shared = {case.first_name: Path(stack.enter_context(tempfile.TemporaryDirectory())) for case in CASES.values()}
        for name in names or CASES:
            case = CASES[name]
            with tempfile.TemporaryDirectory() as own:
                is_shared = case.gpus == 1 and not case.is_first
                found = time_case(server, name, rounds, shared[case.first_name] if is_shared else Path(own))
            for each, sides in found.items():
                result["cases"][each] = {side: [start._asdict() for start in all] for side, all in sides.items()}
                click.echo(describe(each, sides["plain"], sides["ours"]))
            Path(output).write_text(json.dumps(result, indent=1) + "\n")


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
    plain = [time_start(_OnStandIn, case, "plain", folder / "plain", settle_s=_SETTLED_S) for _ in range(2)]
    found: dict[str, dict[str, Any]] = {}
    for name, remedy in REMEDIES.items():
        folders = [baked] * remedy.is_baked + [location] * remedy.has_location + [volume] * remedy.has_volume
        size_bytes = sum(map(_size_of, folders))
        given = ("--compile-cache", str(location)) if remedy.has_location else ()
        variables = {"VCLI_BAKED": str(baked)} if remedy.is_baked else {}
        home = volume if remedy.has_volume or name == "nothing" else folder / f"pod with {name}"
        launcher = "warm" if remedy.has_standby else "ours"
        ours = time_start(_OnStandIn, case, launcher, home, *given, settle_s=_SETTLED_S, environment=variables)
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


def time_case(server: type[_Timed], name: str, rounds: int, folder: Path) -> dict[str, dict[str, list[Start]]]:
    """Times both sides in turns. Every second round is in reverse.

    Starts that are not the first follow one start of each side without caches. On one GPU, it is a case, too.
    """
    case = CASES[name]
    launchers = {"ours": case.launcher} if case.left_out else {"plain": "plain", "ours": case.launcher}
    location = ("--compile-cache", str(folder / "location")) if case.has_location else ()
    found: dict[str, dict[str, list[Start]]] = {name: {"plain": [], "ours": []}}
    if location:
        time_start(server, case, "ours", folder / "fills-the-location", *location, settle_s=_SETTLED_S)
    elif not case.is_first and not (folder / "ours").exists():
        first = {side: [time_start(server, case, side, folder / side, settle_s=_SETTLED_S)] for side in launchers}
        found |= {case.first_name: first} if case.gpus == 1 else {}
    for number in range(rounds):
        for side in [*launchers][:: -1 if number % 2 else 1]:
            home = folder / (f"{side}-{number}" if case.is_first else side)
            arguments = location if side == "ours" else ()
            found[name][side].append(time_start(server, case, launchers[side], home, *arguments))
            click.echo(f"  {side}: {found[name][side][-1]}", err=True)
    return found


def time_start(
    server_type: type[_Timed],
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
    if case.left_out:
        variables["VCLI_LEAVE_OUT"] = case.left_out
    with server_type(launcher, *case.arguments, *arguments, folder=home, environment=variables) as server:
        assert server.log_path is not None
        with follow_log(server.log_path) as log:
            Program.wait(server, lambda: server.health() == 200, _START_S)
            healthy = time.time() - server.begun_s
            server.generate()
            answer = time.time() - server.begun_s
        kernels = None if launcher == "plain" else server.get("/startupz")["kernels"]
        time.sleep(settle_s)
        cuda = server.cuda_s()
        signal_s = time.time()
        server.terminate(signal.SIGTERM)
        stop = time.time() - signal_s
    ends_s = {name: (end_ns - server.begun_ns) / 1e9 for name, end_ns in log.ends_ns.items()}
    phases_s = {name: round(seconds, 2) for name, seconds in divide(ends_s | {"server": healthy}, answer).items()}
    healthy, answer, stop = (round(seconds, 2) for seconds in (healthy, answer, stop))
    return Start(None if cuda is None else round(cuda, 2), healthy, answer, stop, phases_s, kernels)


def describe(name: str, plain: list[Start], ours: list[Start]) -> str:
    """A row of a table in Markdown: medians of both sides, and their ratios."""
    cells = [name, str(len(ours))]
    for field in FIGURES:
        theirs, own = (_median(field, starts) for starts in (plain, ours))
        ratio = f": {own / theirs:.2f}" if own and theirs else ""
        cells.append(f"{theirs or 0:.1f}; {own or 0:.1f} s{ratio}")
    return f"| {' | '.join(cells)} |"


def _median(field: str, starts: list[Start]) -> float | None:
    known = [getattr(start, field) for start in starts if getattr(start, field) is not None]
    return statistics.median(known) if known else None


if __name__ == "__main__":
    main()
