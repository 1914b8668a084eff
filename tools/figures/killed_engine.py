"""`python -m tools.figures.killed_engine`: kills a server's engine, and measures the time to the next token.

Each command must start its server again. The time includes how long the end of the engine is not noticed. The
JSON file has the format of `vllm-cli bench`.
"""

import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import click
import psutil

from tools.figures.tokens import build_config
from vllm_cli.bench.report import Figures, Metric, Result, Side, run_and_publish
from vllm_cli.bench.target import (
    BenchConfig,
    ReadyServer,
    Target,
    TargetSpec,
    TargetStartError,
    ask_until_answered,
    describe,
    time_limit,
    wait_until_ready,
)

_STEADY_S: Final = 20.0
"""How long a server serves before its engine is killed, so that nothing of its start runs any more."""
_ENGINE: Final = "VLLM::EngineCore"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--cmd", "commands", multiple=True, required=True, help="Command of a server that starts again.")
@click.option("--rounds", default=5, show_default=True, help="Killed engines of each server.")
@click.option("--json", "output", type=click.Path(path_type=Path), required=True, help="File for the result.")
def main(commands: tuple[str, ...], rounds: int, output: Path) -> None:
    """Measure all servers."""
    sys.exit(run_and_publish(lambda: measure(build_config(commands, rounds)), output))


def measure(config: BenchConfig) -> Result:
    """Measures all servers in turns. Every second round is in reverse."""
    rounds: dict[str, list[Figures]] = {spec.name: [] for spec in config.targets}
    servers: dict[str, ReadyServer] = {}
    for number in range(config.num_rounds):
        for spec in config.targets[:: -1 if number % 2 else 1]:
            servers[spec.name], seconds = _kill_engine(spec, config)
            rounds[spec.name].append({"next_token_s": seconds})
            click.echo(f"  {spec.name}: {seconds:.2f} s", err=True)
    sides = [
        Side(
            name=spec.name,
            target=describe(spec),
            model=servers[spec.name].model,
            version=servers[spec.name].version,
            rounds={"engine killed": rounds[spec.name]},
        )
        for spec in config.targets
    ]
    description = ["EngineCore is killed by SIGKILL; a request is sent again until it is answered"]
    metrics = (Metric("next_token_s", "next token s"),)
    return Result(
        benchmark="killed-engine",
        metrics=metrics,
        settings=config.settings,
        description=description,
        sides=sides,
        problems=[],
    )


def _kill_engine(spec: TargetSpec, config: BenchConfig) -> tuple[ReadyServer, float]:
    """Starts the server, kills its engine, and waits for a token. Returns the seconds since the kill."""
    with closing(Target(spec)) as target:
        target.start()
        server = wait_until_ready(target, config)
        time.sleep(_STEADY_S)
        engines = find_engines(target.root_pid)
        if not engines:
            raise TargetStartError(f"{spec.name} has no process {_ENGINE}")
        with time_limit(target, config):
            begin_ns = time.monotonic_ns()
            for engine in engines:
                engine.kill()
            first_token_ns = ask_until_answered(server.find_first_text, target)
        if first_token_ns is None:
            raise TargetStartError(f"{spec.name} gives no text: its answer was empty")
        return server, (first_token_ns - begin_ns) / 1e9


def find_engines(pid: int) -> list[psutil.Process]:
    """The engine processes of vLLM among a process's descendants."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            found += [process] if " ".join(process.cmdline()).startswith(_ENGINE) else []
    return found


if __name__ == "__main__":
    main()
