"""Runs a step of a record of figures: one command in its own session, which writes its result to a file."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple
from xml.etree import ElementTree

import psutil

LATE_GRAPHS: Final = "late_graphs"
"""The beginning of the properties with which tests report what a GPU has shown of late CUDA graphs."""
_LEAST_S: Final = 30.0
"""With less time left, no step begins."""
_DESCRIBE: Final = """
import json
from vllm_cli.commands.doctor import describe_machine
print(json.dumps({name: value for name, value in describe_machine().items() if name != "environment"}))
"""
_SHAPE: Final = ("hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
_SHAPES: Final = {"1.5b": (2048, 8192, 24, 64), "8b": (4096, 14336, 36, 128)}
_HEADS: Final = {"num_attention_heads": 32, "num_key_value_heads": 8}
_DEVIATION: Final = 0.02


class Step(NamedTuple):
    """One command. The word `{result}` stands for the file that the command writes."""

    name: str
    words: tuple[str, ...]
    most_s: float
    """The seconds after which the step is ended."""
    usual_s: float = _LEAST_S
    """The seconds that it usually takes. With less time left, it is left out."""


def run_step(
    step: Step, timeout_s: float, *, folder: Path | None = None, prepare: Callable[[Step], None] = lambda step: None
) -> dict[str, Any]:
    """Runs a step in this folder and in a new session. Ends all its processes. Returns the step's entry.

    `prepare` is called first, if the time is long enough for the step.
    """
    if timeout_s < max(_LEAST_S, min(step.usual_s, step.most_s)):
        left_out = {"outcome": "left out: no time", "seconds": 0.0, "exit_code": None, "result": None}
        return {"name": step.name, "command": shlex.join(step.words), **left_out}
    prepare(step)
    begin_s = time.monotonic()
    with tempfile.TemporaryDirectory() as results:
        result = Path(results) / "result"
        words = [word.replace("{result}", str(result)) for word in step.words]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        before = psutil.Process().children()
        process: subprocess.Popen[bytes] | None = None
        code: int | None = None
        try:
            process = subprocess.Popen(words, env=environment, cwd=folder, stdout=2, start_new_session=True)
            code = process.wait(timeout_s)
            outcome = "passed" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            outcome = f"ended after {timeout_s:.0f} s"
        finally:  # also after a signal, which does not reach another session, and may come before `Popen` returns
            for child in psutil.Process().children():
                if child not in before:
                    _end_session(child)
            if process is not None:
                process.wait()
        entry = {"name": step.name, "command": shlex.join(step.words), "outcome": outcome, "exit_code": code}
        return {**entry, "seconds": round(time.monotonic() - begin_s, 1), "result": read_result(result)}


def _end_session(leader: psutil.Process) -> None:
    """Ends the step, and then what is left of its session: servers have process groups of their own."""
    with suppress(psutil.Error, ProcessLookupError):
        os.killpg(leader.pid, signal.SIGTERM)
    psutil.wait_procs([leader], 10)
    while left := [pid for pid in psutil.pids() if pid == leader.pid or _session_of(pid) == leader.pid]:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        psutil.wait_procs([leader], 0.1)


def _session_of(pid: int) -> int | None:
    """None if the process has ended, or if it only waits for its parent to notice its end."""
    with suppress(psutil.Error, ProcessLookupError):
        return os.getsid(pid) if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE else None
    return None


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
    runs = [json.loads(each.get("value", "")) for each in noted if each.get("name", "").startswith(LATE_GRAPHS)]
    return {**counts, "failed": failed, **({LATE_GRAPHS: runs} if runs else {})}


def describe_machine(python: str) -> Mapping[str, Any]:
    """The date, and what `vllm-cli doctor` says of this machine and of the packages of this interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([python, "-c", _DESCRIBE], env=environment, stdout=subprocess.PIPE, check=True)
    return {"date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), **json.loads(done.stdout)}


def make_large_model(folder: Path, small: Path) -> None:
    """Writes the model in bfloat16, with the tokenizer and other settings of `small`, unless it is there.

    The folder's name is the number of parameters: `1.5b` or `8b`.
    """
    weights_file = folder / "model.safetensors"
    if weights_file.exists():
        return
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
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
    unfinished = folder / "unfinished"  # of a run that was ended
    save_file(weights, unfinished, metadata={"format": "pt"})
    unfinished.replace(weights_file)
