"""`make test-gpu`: runs tests and benchmarks on a machine with a GPU, the most valuable ones first.

Each result is added to a JSON file in `--folder` when its step ends, so an interrupted run keeps what has
ended. The file has the form of docs/figures. A step that usually takes longer than the rest of `--minutes` is
left out, and a shorter one may follow. `make figures ARGS="--add build/gpu"` adds the files to docs/figures,
stores what `--cuda-graphs auto` may capture late, and writes the pages.

With `--stand-in` all this runs on the stand-in for a GPU (`make gpu-env`, as root), without large models. No
page shows its figures, because **no kernel runs**. The exit code is 1 if a step failed.
"""

import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import click

from startup.vllm.patches.graphs.graph_proof import RESULT, GpuRun, write_proof
from tests.gpu_stub.gpu_server import MODEL, PYTHON, gpu_environment
from tools.figures.record import ROOT, Record
from tools.figures.running import LATE_GRAPHS, Step, make_large_model, run_step

_LARGE_MODELS: Final = {"8 billion parameters": Path("build/8b"), "1.5 billion parameters": Path("build/1.5b")}
"""If the time is too short for the first, the second may fit."""
_LOAD_FORMATS: Final = {"auto": None, "fastsafetensors": "fastsafetensors", "runai_streamer": "runai_model_streamer"}
"""How vLLM reads weights -> the package that vLLM needs for it."""
_STAND_IN_IS_SLOWER: Final = 4
"""How much longer a step may take on the stand-in, because such a machine has fewer cores."""
_FEW_MINUTES: Final = 20.0
"""Up to so many minutes, each benchmark has one round."""
_PYTEST: Final = (sys.executable, "-m", "pytest", "-q", "--junitxml={result}")
_BENCH: Final = (sys.executable, "-m", "vllm_cli", "bench", "startup", "--json", "{result}")
_SHORT: Final = "--max-model-len 2048"
_PORT: Final = 8123
_UNTIL_COMPLETE: Final = """
"$@" & server=$!
vllm-cli wait --port "$PORT" --pid $server --timeout 250 --graphs --json >"$0"; code=$?
kill $server; wait; exit $code
"""
"""A shell script. Its arguments run as a server until all graphs are captured. The file `$0` has the time."""


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--folder", type=Path, default=ROOT / "build" / "gpu", help="Where the JSON files are written.")
@click.option("--minutes", default=45.0, help="Steps that do not fit in this time are left out.")
@click.option("--model", type=Path, default=MODEL, help="Folder of the model that is served.")
@click.option("--vllm", type=Path, default=PYTHON.parent, help="Folder with vLLM's Python and `vllm`.")
@click.option("--stand-in", "is_stand_in", is_flag=True, help="Use the stand-in for a GPU.")
@click.option("--list", "is_list", is_flag=True, help="Only print the steps that usually fit in the time.")
@click.option("--only", "names", multiple=True, metavar="STEP", help="Run only this step.")
def main(
    folder: Path, minutes: float, model: Path, vllm: Path, is_stand_in: bool, is_list: bool, names: tuple[str, ...]
) -> None:
    """Run all steps."""
    place = Place(model.absolute(), vllm.absolute(), folder.absolute(), is_stand_in=is_stand_in)
    steps = [step for step in place.steps(1 if minutes <= _FEW_MINUTES else 3) if not names or step.name in names]
    if is_list:
        for step in choose(steps, minutes * 60):
            click.echo(f"{step.usual_s:5.0f} s  {step.name}")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the step that runs
    sys.exit(1 if run_steps(place, steps, minutes * 60) else 0)


def choose(steps: list[Step], rest_s: float) -> Iterator[Step]:
    """Yields the steps that fit, if each takes its usual time."""
    for step in steps:
        if step.usual_s <= rest_s:
            rest_s -= step.usual_s
            yield step


def run_steps(place: "Place", steps: list[Step], seconds: float) -> list[str]:
    """Returns the names of the steps that ran and failed."""
    end_s = time.monotonic() + seconds
    record = Record(place.folder, place.python, has_gpu=not place.is_stand_in, runs_kernels=not place.is_stand_in)
    failed: list[str] = []
    runs: set[GpuRun] = set()
    for step in steps:
        most_s = step.most_s * (_STAND_IN_IS_SLOWER if place.is_stand_in else 1)
        entry = run_step(step, min(most_s, end_s - time.monotonic()), prepare=_make_models)
        record.add(entry, place.folder)
        if shown := (entry["result"] or {}).get(LATE_GRAPHS):
            runs.update(GpuRun(**run) for run in shown)
            write_proof(runs, record.described, place.folder / RESULT.name)
        failed += [step.name] if entry["exit_code"] not in (0, None) or entry["outcome"].startswith("ended") else []
        click.echo(f"{step.name}: {entry['outcome']} in {entry['seconds']:.0f} s", err=True)
    click.echo(f"written to {record.path}", err=True)
    return failed


def _make_models(step: Step) -> None:
    for large in _LARGE_MODELS.values():
        if str(large) in shlex.join(step.words):
            make_large_model(large, MODEL)


class Place(NamedTuple):
    """The machine and programs of a run."""

    model: Path
    vllm: Path
    """The folder with vLLM's programs. Without them, steps with vLLM are left out."""
    folder: Path
    is_stand_in: bool

    @property
    def python(self) -> Path:
        """The interpreter of vLLM."""
        return self.vllm / "python"

    def steps(self, rounds: int) -> Iterator[Step]:
        """Yields the steps, the most valuable first. Usual times are estimates from figures of one H200."""
        if self.python.exists():
            yield from self._late_graphs()
            compiled = self._starts("compiled, later", "compiled, beside a standby", rounds=rounds)
            yield Step("GPU, compiled", compiled, 400 + 300 * rounds, 150 + 110 * rounds)
            eager = self._starts("eager, later", "eager, beside a standby", rounds=rounds)
            yield Step("GPU, eager", eager, 300 + 200 * rounds, 90 + 65 * rounds)
            kernels = self._starts("eager, first, without early kernels", rounds=1)
            yield Step("GPU, kernels compiled by the engine", kernels, 120, 45)
            yield from self._large_model(0, usual_s=300)
            yield Step("GPU, requests", self._requests(rounds), 480, 120 + 40 * rounds)
            swaps = self._tool("swaps", "--way", "by hand", "--way", "sleep", "--way", "stop", "--rounds", "3")
            yield Step("GPU, swaps", (*swaps, "--", *_SHORT.split()), 700, 450)
            yield from self._more_late_graphs()
        yield Step("GPU, tests", (*_PYTEST, "tests/cuda", "--ignore-glob=*late_graphs*"), 600, 200)
        ours = f"{sys.executable} -m vllm_cli serve {self.model} --engine embedded"
        yield Step("GPU, embedded: start", (*_BENCH, "--rounds", str(rounds), "--cmd", ours), 120, 30 + 10 * rounds)
        if self.python.exists():
            yield from self._large_model(1, usual_s=200)
            yield from self._load_formats()
            yield Step("GPU, embedded: requests", (*self._client("2"), "--cmd", ours), 300, 120)

    def _late_graphs(self) -> Iterator[Step]:
        """On the stand-in, texts would prove nothing. Its own tests look at memory and calls."""
        if self.is_stand_in:
            test = "test_all_graphs_that_vllm_captures_are_captured_after_readiness[both modes]"
            words = (*_PYTEST, f"tests/gpu_stub/test_gpu_late_graphs.py::{test}")
            yield Step("late CUDA graphs, the default", words, 400, 150)
            return
        default = "tests/cuda/test_late_graphs_on_gpus.py::test_the_default"
        yield Step("late CUDA graphs, the default", (*self._with_vllm(), *_PYTEST, default), 400, 150)

    def _with_vllm(self) -> tuple[str, ...]:
        return "env", f"GPU_VLLM={self.vllm}", f"GPU_MODEL={self.model}"

    def _large_model(self, number: int, *, usual_s: float) -> Iterator[Step]:
        """Yields starts of a large model, which is made before."""
        if not self.is_stand_in:
            size, folder = [*_LARGE_MODELS.items()][number]
            words = self._starts("eager, later", rounds=1, model=folder)
            yield Step(f"GPU, eager, {size}", words, 3 * usual_s, usual_s)

    def _more_late_graphs(self) -> Iterator[Step]:
        if self.is_stand_in:
            return
        file = "tests/cuda/test_late_graphs_on_gpus.py"
        words = (*self._with_vllm(), *_PYTEST, file, "--deselect", f"{file}::test_the_default")
        yield Step("late CUDA graphs, features", words, 900, 500)
        script = ("env", f"PORT={_PORT}", f"PATH={Path(sys.executable).parent}:/usr/bin:/bin", "sh", "-c")
        server = shlex.split(f"{self._launcher()} --cuda-graphs after-ready --port {_PORT}")
        yield Step("GPU, all graphs captured", (*script, _UNTIL_COMPLETE, "{result}", *server), 300, 60)

    def _load_formats(self) -> Iterator[Step]:
        """The phase `weights` and the size of the file give the speed in GB/s."""
        size, large = next(reversed(_LARGE_MODELS.items()))
        for load_format, package in _LOAD_FORMATS.items():
            if not self.is_stand_in and (
                package is None or any(self.vllm.parent.glob(f"lib/python*/site-packages/{package}"))
            ):
                words = (*_BENCH, "--rounds", "2", "--cmd", f"{self._launcher(large)} --load-format {load_format}")
                yield Step(f"GPU, {size}: phases of a start, --load-format {load_format}", words, 300, 120)

    def _starts(self, *cases: str, rounds: int, model: Path | None = None) -> tuple[str, ...]:
        words = [word for case in cases for word in ("--case", case)]
        return self._tool("starts", "--rounds", str(rounds), *words, model=model)

    def _tool(self, name: str, *words: str, model: Path | None = None) -> tuple[str, ...]:
        own = () if self.is_stand_in else ("--gpu", "--vllm", str(self.vllm), "--model", str(model or self.model))
        return sys.executable, "-m", f"tools.gpu_stub.{name}", "--json", "{result}", *own, *words

    def _requests(self, rounds: int) -> tuple[str, ...]:
        """Captures before readiness, so that both sides are equally ready. Both have the GPU at once."""
        share = "--gpu-memory-utilization 0.45"
        ours = f"{self._launcher()} {share} --cuda-graphs before-ready"
        plain = f"{self._variables()} {self.vllm}/vllm serve {self.model} {_SHORT} {share}"
        return (*self._client(str(rounds)), "--cmd", ours, "--cmd", plain)

    def _client(self, rounds: str) -> tuple[str, ...]:
        words = ("--vllm", f"{self.vllm}/vllm", "--model", str(self.model), "--rounds", rounds)
        return sys.executable, "-m", "tools.figures.tokens", *words, "--concurrency", "1,32", "--json", "{result}"

    def _launcher(self, model: Path | None = None) -> str:
        """The command of our launcher, in the Python environment of vLLM."""
        serve = f"-m vllm_cli serve {model or self.model} --engine vllm {_SHORT}"
        return f"{self._variables()} PYTHONPATH={ROOT} {self.python} {serve}"

    def _variables(self) -> str:
        """The words before a command with its variables."""
        home = self.folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        chosen = gpu_environment(home) if self.is_stand_in else {}
        return shlex.join(["env", *(f"{name}={value}" for name, value in chosen.items())])


if __name__ == "__main__":
    main()
