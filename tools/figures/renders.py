"""`python -m tools.figures.renders`: measures `/health` while 300 clients send chats to render.

Each client sends requests with a chat of 60 messages to `/tokenize`, one after the other. The servers are
measured in turns, and idle servers are frozen. The JSON file has the format of `vllm-cli bench`.
"""

import asyncio
import json
import sys
import time
from collections import defaultdict
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import click

from vllm_cli.bench.probe import HealthProbe
from vllm_cli.bench.readiness import ReadyServer, wait_until_ready
from vllm_cli.bench.report import Figures, Metric, Result, Side, percentiles_ms, run_and_publish
from vllm_cli.bench.request import open_session
from vllm_cli.bench.target import BenchConfig, Target, TargetSpec, describe

_METRICS: Final = (
    *(Metric(f"health_{which}_ms", f"/health {which} ms") for which in ("p50", "p99", "max")),
    Metric("requests_per_s", "requests/s"),
)
_WARM_UP_S: Final = 2.0
_CONDITION: Final = "300 renders"
_TEXT: Final = "The river keeps the road. " * 8
_MESSAGES: Final = [{"role": "user", "content": _TEXT}, {"role": "assistant", "content": _TEXT}] * 30


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--cmd", "commands", multiple=True, required=True, help="Command that starts a server to measure.")
@click.option("--rounds", default=3, show_default=True, help="Rounds of each server.")
@click.option("--seconds", default=10.0, show_default=True, help="Length of a round.")
@click.option("--clients", default=300, show_default=True, help="Requests in flight.")
@click.option("--json", "output", type=click.Path(path_type=Path), required=True, help="File for the result.")
def main(commands: tuple[str, ...], rounds: int, seconds: float, clients: int, output: Path) -> None:
    """Measure all servers."""
    targets = tuple(TargetSpec(name=chr(ord("A") + index), command=each) for index, each in enumerate(commands))
    config = BenchConfig(targets=targets, num_rounds=rounds)
    sys.exit(run_and_publish(measure(config, seconds, clients), output))


async def measure(config: BenchConfig, seconds: float, clients: int) -> Result:
    """Starts all servers, then measures them in turns."""
    with ExitStack() as stack:
        targets = [stack.enter_context(closing(Target(spec))) for spec in config.targets]
        servers = []
        for target in targets:
            target.start()
            servers.append(await wait_until_ready(target, config))
            target.pause()
        rounds: list[defaultdict[str, list[Figures]]] = [defaultdict(list) for _ in targets]
        for _ in range(config.num_rounds):
            for target, server, measured in zip(targets, servers, rounds, strict=True):
                target.resume()
                measured[_CONDITION].append(await _measure_round(target, server, seconds, clients))
                target.pause()
    sides = [
        Side(name=spec.name, target=describe(spec), model=server.form.model, version=server.version, rounds=measured)
        for spec, server, measured in zip(config.targets, servers, rounds, strict=True)
    ]
    return Result(
        benchmark="renders",
        metrics=_METRICS,
        settings={**config.settings, "seconds": seconds, "clients": clients},
        description=[f"/tokenize of {len(_MESSAGES)} messages, {clients} clients"],
        sides=sides,
        problems=[],
    )


async def _measure_round(target: Target, server: ReadyServer, seconds: float, clients: int) -> dict[str, Any]:
    """Measures one round. Probes begin some time after the load, and end with the load."""
    body = json.dumps({"model": server.form.model, "messages": _MESSAGES})
    begin_s = time.monotonic() + _WARM_UP_S
    end_s = begin_s + seconds
    num_answers = 0

    async def ask() -> None:
        nonlocal num_answers
        while time.monotonic() < end_s:
            url = f"{target.base_url}/tokenize"
            async with session.post(url, data=body, headers=server.form.headers) as answer:
                answer.raise_for_status()
                await answer.read()
                num_answers += time.monotonic() >= begin_s

    with HealthProbe(is_starting=True) as probe:
        async with open_session() as session, asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(ask())
            await asyncio.sleep(_WARM_UP_S)
            await asyncio.to_thread(probe.start, target.base_url)
        samples = await asyncio.to_thread(probe.finish)
    return {
        **percentiles_ms("health", samples.latencies_ns, 50, 99, 100),
        "num_probes": len(samples.latencies_ns),
        "requests_per_s": num_answers / seconds,
    }


if __name__ == "__main__":
    main()
