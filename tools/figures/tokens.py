"""`python -m tools.figures.tokens`: measures output tokens per second, with `vllm bench serve` as the client.

Several servers are measured in turns, while the others are frozen. All prompts are random, so no prefix cache
helps. The JSON file has the format of `vllm-cli bench`.
"""

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from envs.environment import snapshot
from tools.figures.processor_time import descendants_s
from vllm_cli.bench.report import Figures, Metric, Result, Side, run_and_publish
from vllm_cli.bench.target import BenchConfig, ReadyServer, Target, TargetSpec, describe, wait_until_ready

MeasureRound = Callable[[Target, ReadyServer, int], dict[str, Any]]
"""Measures one server in the round of this number."""

_PROMPT_TOKENS: Final = 64
_LEAST_REQUESTS: Final = 8
_REQUESTS_PER_CLIENT: Final = 4
FIELDS: Final = {
    "output_tokens_per_s": "output_throughput",
    "requests_per_s": "request_throughput",
    "ttft_p50_ms": "median_ttft_ms",
    "ttft_p99_ms": "p99_ttft_ms",
    "tpot_p50_ms": "median_tpot_ms",
    "tpot_p99_ms": "p99_tpot_ms",
}
"""Figure -> its name in the result of `vllm bench serve`."""
PROCESSOR: Final = "processor_ms_per_token"
"""Figure: the processor time of all processes of the server, divided by the number of new tokens."""
_METRICS: Final = tuple(Metric(name, name) for name in (*FIELDS, PROCESSOR))


@dataclass(frozen=True)
class Client:
    """The program that sends requests."""

    vllm: str
    """The program `vllm`."""
    model: str
    """The folder of the model, for its tokenizer."""
    max_tokens: int

    def measure(self, level: int, target: Target, server: ReadyServer, number: int) -> dict[str, Any]:
        """Measures one round with `level` requests in flight. In a round, all sides get the same prompts.

        The processor time includes `level` requests of the client's warm-up.
        """
        num_requests = max(_LEAST_REQUESTS, _REQUESTS_PER_CLIENT * level)
        with tempfile.TemporaryDirectory(prefix="vllm-cli-tokens-") as folder:
            given = {
                "--base-url": target.base_url,
                "--model": self.model,
                "--served-model-name": server.model,
                "--dataset-name": "random",
                "--random-input-len": _PROMPT_TOKENS,
                "--random-output-len": self.max_tokens,
                "--max-concurrency": level,
                "--num-prompts": num_requests,
                "--num-warmups": level,
                "--temperature": 0,
                "--seed": 1000 * level + number,
                "--result-dir": folder,
                "--result-filename": "result.json",
            }
            words = [str(word) for pair in given.items() for word in pair]
            before_s = descendants_s(target.root_pid)
            _run(self.vllm, "bench", "serve", "--ignore-eos", "--disable-tqdm", "--save-result", *words)
            processor_s = descendants_s(target.root_pid) - before_s
            result = json.loads(Path(folder, "result.json").read_text())
        num_tokens = (num_requests + level) * self.max_tokens
        return {**read_result(result, num_requests), PROCESSOR: 1000 * processor_s / num_tokens}


def read_result(result: Mapping[str, Any], num_requests: int) -> dict[str, Any]:
    """The figures of a round. Raises ClickException if a request has failed."""
    if result["completed"] != num_requests:
        raise click.ClickException(f"{num_requests - result['completed']} of {num_requests} requests failed")
    return {name: result[field] for name, field in FIELDS.items()}


def _run(*words: str) -> None:
    """Runs the client without this project's modules. Raises ClickException with its output if it fails."""
    environment = {name: value for name, value in snapshot().items() if name != "PYTHONPATH"}
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise click.ClickException(f"{words[0]} has failed:\n{done.stdout.decode(errors='replace')[-2000:]}")


def measure(config: BenchConfig, client: Client, levels: tuple[int, ...]) -> Result:
    """Measures all servers at all levels."""
    conditions = {f"{level} at once": partial(client.measure, level) for level in levels}
    return Result(
        benchmark="tokens",
        metrics=_METRICS,
        settings={**config.settings, "prompt_tokens": _PROMPT_TOKENS, "max_tokens": client.max_tokens},
        description=[f"`vllm bench serve`, prompts of {_PROMPT_TOKENS} tokens, {client.max_tokens} new tokens"],
        sides=measure_in_turns(config, conditions),
        problems=[],
    )


def build_config(commands: tuple[str, ...], num_rounds: int) -> BenchConfig:
    """The servers A, B, ... that these commands start."""
    targets = tuple(TargetSpec(name=chr(ord("A") + index), command=each) for index, each in enumerate(commands))
    return BenchConfig(targets=targets, num_rounds=num_rounds)


def measure_in_turns(config: BenchConfig, conditions: Mapping[str, MeasureRound]) -> list[Side]:
    """Starts all servers, then measures each of them in each round of each condition.

    For the second half of the rounds, the servers are started anew in the reverse order, because the one that
    starts first is slower: on two cores by a twentieth, whichever program it is.
    """
    rounds: list[defaultdict[str, list[Figures]]] = [defaultdict(list) for _ in config.targets]
    middle = (config.num_rounds + 1) // 2
    servers = _measure_half(config, conditions, range(middle), rounds)
    if middle < config.num_rounds:
        _measure_half(config, conditions, range(middle, config.num_rounds), rounds, is_reversed=True)
    return [
        Side(name=spec.name, target=describe(spec), model=server.model, version=server.version, rounds=measured)
        for spec, server, measured in zip(config.targets, servers, rounds, strict=True)
    ]


def _measure_half(
    config: BenchConfig,
    conditions: Mapping[str, MeasureRound],
    numbers: range,
    rounds: Sequence[Mapping[str, list[Figures]]],
    *,
    is_reversed: bool = False,
) -> list[ReadyServer]:
    """Adds the figures of the rounds of these numbers to `rounds` of each side. Returns the servers.

    A round before them does not count. Every second round is in reverse, so that the order favours no side.
    """
    with ExitStack() as stack:
        targets = [stack.enter_context(closing(Target(spec))) for spec in config.targets]
        ready: dict[int, ReadyServer] = {}
        in_order = [*enumerate(targets)][:: -1 if is_reversed else 1]
        for index, target in in_order:
            target.start()
            ready[index] = wait_until_ready(target, config)
            target.send("pause")
        for condition, measure in conditions.items():
            for number in (-1, *numbers):
                for index, target in in_order[:: -1 if number % 2 else 1]:
                    target.send("resume")
                    figures = measure(target, ready[index], number)
                    rounds[index][condition].extend([figures] if number >= 0 else [])
                    target.send("pause")
    return [ready[index] for index in range(len(targets))]


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--cmd", "commands", multiple=True, required=True, help="Command that starts a server to measure.")
@click.option("--vllm", default=".peers/vllm/bin/vllm", help="The program `vllm`, whose client sends the requests.")
@click.option("--model", default=".peers/model", help="Folder of the model that the servers have.")
@click.option("--concurrency", "levels", default="1,8,32", help="Requests in flight.")
@click.option("--rounds", default=3, help="Rounds of each server and number of requests in flight.")
@click.option("--max-tokens", default=64, help="Tokens to generate.")
@click.option("--json", "output", type=click.Path(path_type=Path), required=True, help="File for the result.")
def main(
    commands: tuple[str, ...], vllm: str, model: str, levels: str, rounds: int, max_tokens: int, output: Path
) -> None:
    """Measure all servers."""
    numbers = tuple(map(int, levels.split(",")))
    config, client = build_config(commands, rounds), Client(vllm, model, max_tokens)
    sys.exit(run_and_publish(lambda: measure(config, client, numbers), output))


if __name__ == "__main__":
    main()
