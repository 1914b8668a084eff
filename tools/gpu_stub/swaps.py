"""`python -m tools.gpu_stub.swaps`: times three ways in which two models of vLLM change places on one GPU.

The way `sleep` is `vllm-cli serve` with `on_swap: sleep`. The way `stop` is the same with `on_swap: stop`.
The way `by hand` runs two servers of `vllm serve --enable-sleep-mode` and calls their development endpoints.
The time of a swap begins with a request for the model that sleeps or is stopped, and ends with its first
token.

On the stand-in **no kernel runs**. `--gpu` uses the machine's own GPU. The JSON file has all rounds.
"""

import http.client
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlencode

import click

from tests.gpu_stub.gpu_router import PREFIX
from tests.gpu_stub.gpu_server import gpu_variables
from tests.support.peer_vllm import ROOT
from tests.support.ports import free_port
from tests.support.program import Program, Server
from tools.figures.running import describe_machine

_NAMES: Final = ("a", "b")
_START_S: Final = 1200.0
_STAYS_S: Final = 4.0
"""The pause before a timed swap. A router keeps a model for at least its scheduler's `min_stay_s`."""


class Machine(NamedTuple):
    """The machine on which the models run."""

    python: Path
    """The Python interpreter of vLLM."""
    variables: dict[str, str]
    prefix: tuple[str, ...]
    """The arguments before a server's command."""
    arguments: tuple[str, ...]
    """The arguments of each model after `serve`. The first argument is the model's folder."""

    @classmethod
    def of(cls, home: Path, vllm: Path, model: str, arguments: tuple[str, ...], *, is_real: bool) -> Self:
        """A machine with its own GPU (`is_real`), or with the stand-in for a GPU."""
        variables = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)} if is_real else gpu_variables(home)
        arguments = (str(Path(model).absolute()), "--gpu-memory-utilization", "0.9", *arguments)
        return cls((vllm / "python").absolute(), variables, () if is_real else PREFIX, arguments)


class _Router(Server):
    poll_s = 0.1

    def __init__(self, machine: Machine, folder: Path, on_swap: str, level: int | None) -> None:
        self.port = free_port()
        entry = {"model": machine.arguments[0], "engine": "vllm", "args": [*machine.arguments[1:]], "on_swap": on_swap}
        if level is not None:
            entry["sleep_level"] = level
        file = folder / "models.yaml"
        file.write_text(json.dumps({"models": dict.fromkeys(_NAMES, entry)}))
        arguments = ("serve", "--models", file, "--host", "127.0.0.1", "--port", self.port)
        command = [*machine.prefix, machine.python, "-m", "vllm_cli", *arguments]
        super().__init__(command, machine.variables, is_awaited=True, log_path=folder / "router.log")

    def swap(self, model: str, other: str) -> int:
        """Requests a first token while the other model has the GPU. Returns the status."""
        return _ask_first_token(self.port, model)


class _ByHand(Server):
    """This process is the server of model a. A second process is the server of model b."""

    poll_s = 0.1
    leaves_nothing = False

    def __init__(self, machine: Machine, folder: Path, level: int) -> None:
        self._level = level
        self.ports = {name: free_port() for name in _NAMES}
        self.port = self.ports["a"]
        variables = {**machine.variables, "VLLM_SERVER_DEV_MODE": "1"}
        first, self._second = (
            [*machine.prefix, machine.python.with_name("vllm"), "serve", *machine.arguments, "--enable-sleep-mode"]
            + ["--served-model-name", name, "--host", "127.0.0.1", "--port", port]
            for name, port in self.ports.items()
        )
        super().__init__(first, variables, log_path=folder / "a.log")
        self._other = Server(self._second, variables, log_path=folder / "b.log")
        self._other.leaves_nothing = False
        self._other.port = self.ports["b"]

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            Program.wait(self, lambda: self.health() == 200, _START_S)
            self._post("a", "/sleep", level=self._level)
            self._other.__enter__()
            Program.wait(self._other, lambda: self._other.health() == 200, _START_S)
        except BaseException:
            if hasattr(self._other, "process"):
                self._other.stop()
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self._other.__exit__(*exc)
        finally:
            super().__exit__(*exc)

    def swap(self, model: str, other: str) -> int:
        self._post(other, "/sleep", level=self._level)
        if self._level == 1:
            self._post(model, "/wake_up")
        else:
            self._post(model, "/wake_up", tags="weights")
            self._post(model, "/collective_rpc", {"method": "reload_weights"})
            self._post(model, "/wake_up", tags="kv_cache")
        return _ask_first_token(self.ports[model], model)

    def _post(self, name: str, path: str, body: object = None, **query: object) -> None:
        status = _ask(self.ports[name], f"{path}?{urlencode(query)}", body or {})
        assert status == 200, (name, path, status)


def _ask_first_token(port: int, model: str) -> int:
    """Requests an answer of one token, and reads the stream to its end. Returns the status."""
    fields = {"prompt": "The capital of France is", "max_tokens": 1, "stream": True, "ignore_eos": True}
    return _ask(port, "/v1/completions", {"model": model, **fields})


def _ask(port: int, path: str, body: object) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_START_S)
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except OSError:
        return 0
    finally:
        connection.close()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "output", default="build/gpu-swaps.json", show_default=True, help="File for the result.")
@click.option("--rounds", default=5, show_default=True, help="Timed swaps of each model.")
@click.option("--way", "ways", multiple=True, type=click.Choice(["by hand", "sleep", "stop"]), help="Only this way.")
@click.option("--gpu", "is_real", is_flag=True, help="Use the machine's own GPU.")
@click.option("--vllm", default=".peers/cuda/bin", show_default=True, help="Folder with vLLM's Python and `vllm`.")
@click.option("--model", default=".peers/model", show_default=True, help="Folder of the model.")
@click.argument("arguments", nargs=-1)
def main(
    output: str,
    rounds: int,
    ways: tuple[str, ...],
    is_real: bool,
    vllm: str,
    model: str,
    arguments: tuple[str, ...],
) -> None:
    """Run all ways. ARGUMENTS are further arguments of each model, such as `-- --enforce-eager`."""
    result: dict[str, Any] = {"no kernel runs": not is_real, "arguments": arguments, "ways": {}}
    result["machine"] = describe_machine(str(Path(vllm) / "python"))
    for way in ways or ("by hand", "sleep", "stop"):
        for level in (None,) if way == "stop" else (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                machine = Machine.of(Path(folder), Path(vllm), model, arguments, is_real=is_real)
                entry = measure(machine, Path(folder), way, level, rounds)
            result["ways"][way if level is None else f"{way}, level {level}"] = entry
            Path(output).parent.mkdir(parents=True, exist_ok=True)
            Path(output).write_text(json.dumps(result, indent=1) + "\n")
            swaps = ", ".join(f"{seconds:.2f}" for seconds in entry["swaps_s"])
            click.echo(f"{way}, level {level}: median {statistics.median(entry['swaps_s']):.2f} s ({swaps})", err=True)


def measure(machine: Machine, folder: Path, way: str, level: int | None, rounds: int) -> dict[str, list[float]]:
    """Measures one way."""
    swaps_s = []
    side = _ByHand(machine, folder, level or 1) if way == "by hand" else _Router(machine, folder, way, level)
    with side:
        for name, other in (("a", "b"), ("b", "a")):  # afterwards each model has started and been swapped once
            assert side.swap(name, other) == 200, side.log[-8000:]
        for name, other in (("a", "b"), ("b", "a")) * rounds:
            time.sleep(_STAYS_S)
            begin_s = time.perf_counter()
            assert side.swap(name, other) == 200, side.log[-8000:]
            swaps_s.append(round(time.perf_counter() - begin_s, 3))
    return {"swaps_s": swaps_s}


if __name__ == "__main__":
    main()
