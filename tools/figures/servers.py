"""Measures several servers in turns, while the others are frozen. The result is that of `vllm-cli bench`."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, closing
from typing import Any

from vllm_cli.bench.report import Figures, Side
from vllm_cli.bench.target import BenchConfig, ReadyServer, Target, TargetSpec, describe, wait_until_ready

MeasureRound = Callable[[Target, ReadyServer, int], Awaitable[dict[str, Any]]]
"""Measures one server in the round of this number."""


def build_config(commands: tuple[str, ...], num_rounds: int) -> BenchConfig:
    """The servers A, B, ... that these commands start."""
    targets = tuple(TargetSpec(name=chr(ord("A") + index), command=each) for index, each in enumerate(commands))
    return BenchConfig(targets=targets, num_rounds=num_rounds)


async def measure_in_turns(config: BenchConfig, conditions: Mapping[str, MeasureRound]) -> list[Side]:
    """Starts all servers, then measures each of them in each round of each condition."""
    with ExitStack() as stack:
        targets = [stack.enter_context(closing(Target(spec))) for spec in config.targets]
        servers = []
        for target in targets:
            target.start()
            servers.append(await wait_until_ready(target, config))
            target.send("pause")
        rounds: list[defaultdict[str, list[Figures]]] = [defaultdict(list) for _ in targets]
        for condition, measure in conditions.items():
            for number in range(config.num_rounds):
                for target, server, measured in zip(targets, servers, rounds, strict=True):
                    target.send("resume")
                    measured[condition].append(await measure(target, server, number))
                    target.send("pause")
    return [
        Side(name=spec.name, target=describe(spec), model=server.model, version=server.version, rounds=measured)
        for spec, server, measured in zip(config.targets, servers, rounds, strict=True)
    ]
