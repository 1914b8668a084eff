"""`python -m tools.figures.renders`: measures `/health` while 300 clients send chats to render.

Each client sends requests with a chat of 60 messages to `/tokenize`, one after the other. The JSON file has
the format of `vllm-cli bench`.
"""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any, Final

import aiohttp
import click

from tools.figures.tokens import build_config, measure_in_turns
from vllm_cli.bench.probe import HealthProbe
from vllm_cli.bench.report import Metric, Result, percentiles_ms, run_and_publish
from vllm_cli.bench.target import BenchConfig, ReadyServer, Target

_METRICS: Final = (
    *(Metric(f"health_{which}_ms", f"/health {which} ms") for which in ("p50", "p99", "max")),
    Metric("requests_per_s", "requests/s"),
)
_WARM_UP_S: Final = 2.0
_ROUND_S: Final = 10.0
_CLIENTS: Final = 300
_TEXT: Final = "The river keeps the road. " * 8
_MESSAGES: Final = [{"role": "user", "content": _TEXT}, {"role": "assistant", "content": _TEXT}] * 30


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--cmd", "commands", multiple=True, required=True, help="Command that starts a server to measure.")
@click.option("--rounds", default=3, show_default=True, help="Rounds of each server.")
@click.option("--json", "output", type=click.Path(path_type=Path), required=True, help="File for the result.")
def main(commands: tuple[str, ...], rounds: int, output: Path) -> None:
    """Measure all servers."""
    sys.exit(run_and_publish(lambda: measure(build_config(commands, rounds)), output))


def measure(config: BenchConfig) -> Result:
    """Measures all servers."""
    return Result(
        benchmark="renders",
        metrics=_METRICS,
        settings={**config.settings, "seconds": _ROUND_S, "clients": _CLIENTS},
        description=[f"/tokenize of {len(_MESSAGES)} messages, {_CLIENTS} clients"],
        sides=measure_in_turns(config, {f"{_CLIENTS} renders": lambda *given: asyncio.run(_measure_round(*given))}),
        problems=[],
    )


async def _measure_round(target: Target, server: ReadyServer, _: int) -> dict[str, Any]:
    """Measures one round. Probes begin some time after the load, and end with the load."""
    body = {"model": server.model, "messages": _MESSAGES}
    begin_s = time.monotonic() + _WARM_UP_S
    end_s = begin_s + _ROUND_S
    num_answers = 0

    async def ask() -> None:
        nonlocal num_answers
        while time.monotonic() < end_s:
            url = f"{target.base_url}/tokenize"
            async with session.post(url, json=body) as answer:
                answer.raise_for_status()
                await answer.read()
                num_answers += time.monotonic() >= begin_s

    unlimited = aiohttp.TCPConnector(limit=0)
    with HealthProbe() as probe:
        async with aiohttp.ClientSession(connector=unlimited) as session, asyncio.TaskGroup() as group:
            for _ in range(_CLIENTS):
                group.create_task(ask())
            await asyncio.sleep(_WARM_UP_S)
            await asyncio.to_thread(probe.start, target.base_url)
        samples = await asyncio.to_thread(probe.finish)
    return {
        **percentiles_ms("health", samples.latencies_ns, 50, 99, 100),
        "num_probes": len(samples.latencies_ns),
        "requests_per_s": num_answers / _ROUND_S,
    }


if __name__ == "__main__":
    main()
