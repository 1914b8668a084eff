"""`make test-gpu`: runs tests and benchmarks on a machine with a GPU, and writes the results to a JSON file.

The file describes the machine. It has each step's command, seconds, exit code, and report of `bench --json`
or pytest. If a step fails or takes too long, its entry says so, and the next step runs. If vLLM is missing,
steps that need it are left out. The exit code is 1 if a step failed.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from xml.etree import ElementTree

import click

from startup.vllm.patches.graphs.graph_proof import RESULT, GpuRun, write_proof

_DESCRIBE: Final = """
import json
from vllm_cli.commands.doctor import describe_machine
print(json.dumps({name: value for name, value in describe_machine().items() if name != "environment"}))
"""
_TESTS_S: Final = 600.0
_LEAST_S: Final = 30.0
"""A step is left out if the remaining time is shorter than this."""

_LARGE_MODELS: Final = {"1.5 billion parameters": Path("build/1.5b"), "8 billion parameters": Path("build/8b")}
_UNTIL_COMPLETE: Final = """
"$@" & server=$!
vllm-cli wait --port "$PORT" --pid $server --timeout 250 --graphs --json >"$0"; code=$?
kill $server; wait; exit $code
"""
"""A shell script. Its arguments run as a server until all graphs are captured. The file `$0` has the time."""
_BENCH: Final = (sys.executable, "-m", "vllm_cli", "bench", "startup", "--json", "{result}")
_SHORT: Final = "--max-model-len 2048"
_PORT: Final = 8123
_LOAD_FORMATS: Final = {"auto": None, "fastsafetensors": "fastsafetensors", "runai_streamer": "runai_model_streamer"}
"""How vLLM reads weights -> the package that vLLM needs for it."""
_SHAPE: Final = ("hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
_SHAPES: Final = {"1.5b": (2048, 8192, 24, 64), "8b": (4096, 14336, 36, 128)}
_HEADS: Final = {"num_attention_heads": 32, "num_key_value_heads": 8}
_DEVIATION: Final = 0.02
_LATE_GRAPHS: Final = "late_graphs"
"""The beginning of the properties with which tests report what a GPU has shown of late CUDA graphs."""


class Step(NamedTuple):
    """One command. The word `{result}` stands for the file that the command writes."""

    name: str
    words: tuple[str, ...]
    most_s: float
    """The seconds after which the step is ended."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "output", default="build/gpu-figures.json", show_default=True, help="File for the result.")
@click.option("--minutes", default=25.0, show_default=True, help="Steps that do not fit in this time are left out.")
@click.option("--model", default=".peers/model", show_default=True, help="Folder of the model that is served.")
@click.option("--vllm", default=".peers/cuda/bin", show_default=True, help="Folder with vLLM's Python and `vllm`.")
@click.option("--proof", default=str(RESULT), help="File for what `--cuda-graphs auto` may capture late.")
def main(output: str, minutes: float, model: str, vllm: str, proof: str) -> None:
    """Run all steps."""
    end_s = time.monotonic() + minutes * 60
    python = Path(vllm) / "python"
    has_vllm = python.exists()
    result: dict[str, Any] = {"machine": describe_machine(str(python) if has_vllm else sys.executable), "steps": []}
    if not has_vllm:
        result["left_out"] = f"{python} is missing: no step with vLLM"
    has_failed = False
    runs: set[GpuRun] = set()
    for step in steps(Path(model), Path(vllm) if has_vllm else None):
        for large in _LARGE_MODELS.values():
            if str(large) in " ".join(step.words):
                make_large_model(large, Path(model))
        entry = run_step(step, min(step.most_s, end_s - time.monotonic()))
        if shown := (entry.get("result") or {}).get(_LATE_GRAPHS):
            runs.update(GpuRun(**run) for run in shown)
            write_proof(runs, result["machine"], Path(proof))  # which `--cuda-graphs auto` follows
        has_failed |= entry["exit_code"] != 0
        result["steps"].append(entry)
        click.echo(f"{step.name}: {entry['outcome']} in {entry['seconds']:.0f} s", err=True)
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(json.dumps(result, indent=1) + "\n")
    click.echo(f"written to {output}", err=True)
    sys.exit(1 if has_failed else 0)


def steps(model: Path, vllm: Path | None) -> Iterator[Step]:
    """Steps without earlier results come first, and vLLM comes before the embedded engine."""
    if vllm is not None:
        late = ("env", f"GPU_VLLM={vllm}", f"GPU_MODEL={model}", sys.executable, "-m", "pytest", "-q")
        file = "tests/cuda/test_late_graphs_on_gpus.py"
        report = "--junitxml={result}"
        yield Step("late CUDA graphs, the default", (*late, f"{file}::test_the_default", report), _TESTS_S)
        others = (*late, file, "--deselect", f"{file}::test_the_default", report)
        yield Step("late CUDA graphs, features", others, _TESTS_S)
        for size, large in _LARGE_MODELS.items():
            yield from _starts(f"vllm, {size}", large, vllm, rounds=1)
        yield from _swaps(model, vllm)
    yield Step("tests", (sys.executable, "-m", "pytest", "-q", "tests/cuda", "--junitxml={result}"), _TESTS_S)
    ours = f"{sys.executable} -m vllm_cli serve {model}"
    if vllm is not None:
        yield from _starts("vllm", model, vllm, rounds=2)
        yield from _load_formats(vllm)
        client = (sys.executable, "-m", "tools.figures.tokens", "--vllm", f"{vllm}/vllm", "--model", str(model))
        served = (*client, "--rounds", "2", "--json", "{result}")
        captured = f"{_launcher(model, vllm)} --cuda-graphs before-ready"
        sides = ("--cmd", captured, "--cmd", _plain(model, vllm))
        yield Step("vllm: requests", (*served, "--concurrency", "1,32", *sides), 360)
        yield Step("embedded: requests", (*served, "--cmd", ours), 300)
    yield Step("embedded: start", (*_BENCH, "--rounds", "3", "--cmd", ours), 120)


def _launcher(model: Path, vllm: Path) -> str:
    return f"env PYTHONPATH={Path.cwd()} {vllm}/python -m vllm_cli serve {model} --engine vllm {_SHORT}"


def _plain(model: Path, vllm: Path) -> str:
    return f"{vllm}/vllm serve {model} {_SHORT}"


def _starts(name: str, model: Path, vllm: Path, *, rounds: int) -> Iterator[Step]:
    """Starts, compiled and not, cold and beside a standby, and the time until all graphs are captured."""
    bench = (*_BENCH, "--rounds", str(rounds))
    for kind, flags in (("compiled", ""), ("eager", " --enforce-eager")):
        ours, plain = (f"{of(model, vllm)}{flags}" for of in (_launcher, _plain))
        yield Step(f"{name}, {kind}: start", (*bench, "--cmd", ours, "--vs", plain), 210 * rounds)
        yield Step(f"{name}, {kind}: warm start", (*bench, "--cmd", ours, "--state", "standby"), 120 * rounds)
    late = shlex.split(f"{_launcher(model, vllm)} --cuda-graphs after-ready --port {_PORT}")
    script = ("env", f"PORT={_PORT}", f"PATH={Path(sys.executable).parent}:{os.defpath}", "sh", "-c", _UNTIL_COMPLETE)
    yield Step(f"{name}: all graphs captured", (*script, "{result}", *late), 300)


def _load_formats(vllm: Path) -> Iterator[Step]:
    """The phase `weights` and the size of the file give the speed in GB/s."""
    size, large = next(iter(_LARGE_MODELS.items()))
    for load_format, package in _LOAD_FORMATS.items():
        if package is None or any(vllm.parent.glob(f"lib/python*/site-packages/{package}")):
            words = (*_BENCH, "--rounds", "2", "--cmd", f"{_launcher(large, vllm)} --load-format {load_format}")
            yield Step(f"vllm, {size}: phases of a start, --load-format {load_format}", words, 300)


def _swaps(model: Path, vllm: Path) -> Iterator[Step]:
    """Each model takes the memory that vLLM takes by default, so that two fit only while one is asleep."""
    swaps = (sys.executable, "-m", "tools.gpu_stub.swaps", "--gpu", "--vllm", str(vllm), "--model", str(model))
    ways = ("--way", "by hand", "--way", "sleep", "--rounds", "3", "--json", "{result}")
    yield Step("vllm: swaps, asleep and by hand", (*swaps, *ways, "--", *_SHORT.split()), 420)


def make_large_model(folder: Path, small: Path) -> None:
    """Writes the model in bfloat16, with the tokenizer and other settings of `small`, unless it is there.

    The folder's name is the number of parameters: `1.5b` or `8b`.
    """
    if folder.exists():
        return
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True)
    for file in small.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    shape = dict(zip(_SHAPE, _SHAPES[folder.name], strict=True))
    config = {**json.loads((small / "config.json").read_text()), **_HEADS, **shape}
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in LlamaForCausalLM(LlamaConfig(**config)).named_parameters()}
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = {
        name: torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, _DEVIATION).cpu()
        for name, shape in shapes.items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def run_step(step: Step, timeout_s: float, *, folder: Path | None = None) -> dict[str, Any]:
    """Runs a step in this folder and in a new session. Ends all its processes. Returns the step's entry."""
    if timeout_s < _LEAST_S:
        return {"name": step.name, "outcome": "left out: no time", "seconds": 0.0, "exit_code": None}
    begin_s = time.monotonic()
    with tempfile.TemporaryDirectory() as results:
        result = Path(results) / "result"
        words = [word.replace("{result}", str(result)) for word in step.words]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        with subprocess.Popen(words, env=environment, cwd=folder, stdout=2, start_new_session=True) as process:
            code: int | None = None
            try:
                code = process.wait(timeout_s)
                outcome = "passed" if code == 0 else f"failed with exit code {code}"
            except subprocess.TimeoutExpired:
                outcome = f"ended after {timeout_s:.0f} s"
            finally:  # also after Ctrl-C, which does not reach another session
                if code is None:
                    _end_group(process)
        entry = {"name": step.name, "command": shlex.join(step.words), "outcome": outcome, "exit_code": code}
        return {**entry, "seconds": round(time.monotonic() - begin_s, 1), "result": read_result(result)}


def _end_group(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def read_result(path: Path) -> Any:
    """The JSON of a benchmark, or counts and failures of pytest's JUnit file. None if there is no file."""
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8")
    if not text.lstrip().startswith("<"):
        return json.loads(text)
    suite = ElementTree.fromstring(text).find("testsuite")
    if suite is None:
        return None
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    bad = [
        case for case in suite.iter("testcase") if case.find("failure") is not None or case.find("error") is not None
    ]
    failed = [f"{case.get('classname')}::{case.get('name')}" for case in bad]
    good = [case for case in suite.iter("testcase") if case not in bad]
    noted = [each for case in good for each in case.iter("property")]
    runs = [json.loads(each.get("value", "")) for each in noted if each.get("name", "").startswith(_LATE_GRAPHS)]
    return {**counts, "failed": failed, **({_LATE_GRAPHS: runs} if runs else {})}


def describe_machine(python: str) -> Mapping[str, Any]:
    """The date, and what `vllm-cli doctor` says of this machine and of the packages of this interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([python, "-c", _DESCRIBE], env=environment, stdout=subprocess.PIPE, check=True)
    return {"date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), **json.loads(done.stdout)}


if __name__ == "__main__":
    main()
