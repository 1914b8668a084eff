"""The group `bench`; its commands are imported only when they run."""

from typing import Final

import click

from vllm_cli.lazy_group import CommandEntry, LazyGroup

BENCHMARKS: Final = (
    CommandEntry("serve", "vllm_cli.commands.bench_serve:serve", "Throughput and latency of OpenAI servers."),
    CommandEntry("startup", "vllm_cli.commands.bench_startup:startup", "From exec to the first token."),
)


@click.group("bench", cls=LazyGroup, table=BENCHMARKS)
def bench() -> None:
    """Measure servers: throughput, latency and /health under load, and starts up to the first token.

    \b
    Examples:
      vllm-cli bench serve --url http://127.0.0.1:8000
      vllm-cli bench startup --cmd "vllm-cli serve"
    """
