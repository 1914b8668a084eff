"""`python -m tools.hook_gains KIND...`: measures what each trick of a start gains, by leaving it out alone.

Each variant has a cache folder of its own and two starts that are not measured, because profiles and import
files record what a start without the trick imports. `bench startup` then measures all variants of a kind in
alternating rounds. Results are collected in docs/hook-gains.json, from which `make docs` draws the table of
docs/vllm-hooks.md. A kind takes 3 to 12 minutes, during which nothing else may run.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

import click
import msgspec

from vllm_cli.bench.results import BenchResult, Machine, Spread, encode_result
from vllm_cli.bench.startup.results import StartupSide
from vllm_cli.bench.target import find_free_port, list_server_ports

GAINS: Final = Path(__file__).parents[1] / "docs" / "hook-gains.json"
NOTHING: Final = "nothing (noise of the measurement)"
"""A second server with all tricks: its ratio shows how far a ratio may be from 1 by chance."""
_IMPORT_FILE: Final = "import file"
_COMPILER: Final = ("lazy torch.compile", "deferred compiler")
_IMPORTS: Final = ("late imports", "cached scans", _IMPORT_FILE)
_ORDER: Final = ("early engine", "wait for the engine", "late tokenizer of the engine")
_WARM: Final = ("kept tokenizers", "prepared tokenizer pools")


class Kind(NamedTuple):
    """A kind of start, and the tricks that can matter for it."""

    flags: str
    tricks: tuple[str, ...]
    state: str = "warm"
    """The state of `bench startup`."""


KINDS: Final = {
    "vLLM, eager": Kind(
        "--engine vllm --enforce-eager",
        (*_COMPILER, *_IMPORTS, *_ORDER, "cheap calls", "unused subcommands", "search for a processor", "spans"),
    ),
    "vLLM, compiled": Kind("--engine vllm", (*_COMPILER, *_IMPORTS, "loading of compiled models")),
    "vLLM, eager, standby": Kind("--engine vllm --enforce-eager", (*_ORDER, *_WARM), "standby"),
    "vLLM, compiled, standby": Kind("--engine vllm", (*_WARM, "kept keys of compile caches"), "standby"),
    "embedded": Kind("", ("cached scans", "stand-ins of the embedded engine", _IMPORT_FILE)),
    "embedded, cold pages": Kind("", ("stand-ins of the embedded engine", _IMPORT_FILE), "cold-pages"),
}


class KindGains(msgspec.Struct, frozen=True, kw_only=True):
    """The measured gains in one kind of start."""

    created_at: str
    machine: Machine
    num_rounds: int
    first_token_s: Spread
    """With all tricks, exec to first token."""
    ratios: dict[str, Spread]
    """By trick: the time with it, divided by the time without it."""


def read_gains() -> dict[str, KindGains]:
    """The newest result of each kind."""
    return msgspec.json.decode(GAINS.read_bytes(), type=dict[str, KindGains]) if GAINS.exists() else {}


@click.command(context_settings={"show_default": True})
@click.argument("names", nargs=-1, metavar="KIND...", type=click.Choice(list(KINDS)))
@click.option("--model", required=True, help="Folder of the model.")
@click.option("--vllm-python", default=sys.executable, help="Interpreter that has vLLM and vllm-cli's dependencies.")
@click.option("--rounds", default=7)
def main(names: tuple[str, ...], model: str, vllm_python: str, rounds: int) -> None:
    """Measures these kinds of start; without KIND: all."""
    for name in names or KINDS:
        python = vllm_python if KINDS[name].flags else sys.executable
        with TemporaryDirectory() as folder:
            result = _measure(KINDS[name], [python, "-m", "vllm_cli", "serve", model], rounds, Path(folder))
        by_trick = {ratio.against: ratio.ratios["first_token_s"] for ratio in result.ratios}
        gains = KindGains(
            created_at=result.created_at,
            machine=result.machine,
            num_rounds=rounds,
            first_token_s=result.sides[0].conditions[0].summary["first_token_s"],
            ratios=by_trick,
        )
        GAINS.write_text(encode_result(read_gains() | {name: gains}), encoding="utf-8")  # type: ignore[arg-type]


def _measure(kind: Kind, words: list[str], rounds: int, folder: Path) -> BenchResult[StartupSide]:
    commands = list(_commands(kind, words, folder))
    if kind.state != "standby":
        for _, command in [*commands, *commands]:
            _start_once(command)
    sides = [word for name, command in commands for word in ("--vs", command, "--name", name)]
    sides[0] = "--cmd"
    result = folder / "result.json"
    options = ["--rounds", str(rounds), "--state", kind.state, "--json", str(result)]
    if kind.state == "cold-pages":
        options.append("--evict-libraries")
    subprocess.run([*_OWN, "bench", "startup", *options, *sides], cwd=folder, env=_environment(), check=True)
    return msgspec.json.decode(result.read_bytes(), type=BenchResult[StartupSide])


def _commands(kind: Kind, words: list[str], folder: Path) -> Iterator[tuple[str, str]]:
    """The commands with all tricks, with all again, and without each."""
    for number, trick in enumerate(("all", NOTHING, *kind.tricks)):
        switch = "VCLI_IMPORT_FILE=0" if trick == _IMPORT_FILE else f"VCLI_LEAVE_OUT={trick}"
        switches = [] if number < 2 else [switch]
        variables = [f"VLLM_CACHE_ROOT={folder / str(number)}", f"PYTHONPATH={GAINS.parents[1]}", *switches]
        yield trick, shlex.join(["env", *variables, *words, *kind.flags.split()])


_OWN: Final = [sys.executable, "-m", "vllm_cli"]


def _environment() -> dict[str, str]:
    """Without a hub, with a small KV cache; PYTHONDONTWRITEBYTECODE would also prevent import files."""
    variables = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(GAINS.parents[1])}
    variables.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    return variables


def _start_once(command: str) -> None:
    """Starts a server, waits a second after it is ready, when the import file is written, and stops it."""
    port = str(find_free_port(list_server_ports()))
    with subprocess.Popen(
        [*shlex.split(command), "--port", port],
        env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as server:  # fmt: skip
        subprocess.run([*_OWN, "wait", "--port", port, "--timeout", "120"], check=True, stdout=subprocess.DEVNULL)
        time.sleep(1)
        server.terminate()


if __name__ == "__main__":
    main()
