"""The options of `bench serve`; the benchmark is imported only when it runs."""

from contextlib import suppress
from typing import Any

import click

from envs.registry import env
from vllm_cli.commands.bench_options import COUNT, build_targets, command, shared_options, url


def _levels(value: str) -> tuple[int, ...]:
    """Comma-separated numbers, each 1 or more; in ascending order, each once."""
    with suppress(ValueError):
        levels = tuple(sorted({int(part) for part in value.split(",")}))
        if levels[0] >= 1:
            return levels
    raise click.BadParameter(f"{value!r} is not a list such as 1,8,32.")


@click.command("serve", context_settings={"max_content_width": 110, "show_default": True})
@click.option("--cmd", "commands", multiple=True, type=command, help="Command that starts a server to measure.")
@click.option("--url", "urls", multiple=True, type=url, help="Address of a running server to measure.")
@click.option("--vs-url", "other_urls", multiple=True, type=url, help="Address of a running server to compare with.")
@click.option("--model", show_default="the first that the server lists", help="Model to request.")
@click.option("--vs-model", show_default="--model", help="Model to request from the servers to compare with.")
@click.option("--concurrency", "levels", type=_levels, default="1,8,32", metavar="N,N,...", help="Requests in flight.")
@click.option(
    *("--requests", "--num-prompts", "num_requests"),
    type=COUNT,
    show_default="4 for each in flight, at least 8",
    help="Requests per round.",
)
@click.option("--rounds", "num_rounds", type=COUNT, default=3, help="Measured rounds of each --concurrency.")
@click.option("--prompt-tokens", type=COUNT, default=64, help="Approximate length of the prompts.")
@click.option(
    "--shared-prefix-tokens",
    type=click.IntRange(0),
    default=0,
    help="Approximate length of a text that is put before all prompts, as a system prompt would be.",
)
@click.option("--max-tokens", type=COUNT, default=64, help="Tokens to generate.")
@click.option(
    "--idle",
    type=click.Choice(["pause", "run"]),
    default="pause",
    help="Freeze started servers while another one is measured, or leave them running.",
)
@click.option("--seed", type=int, default=0, help="Seed of the prompts.")
@shared_options
def serve(**options: Any) -> int:
    """Measure a server with the OpenAI API, alone or against others.

    A fixed number of requests is kept in flight, level by level. The report has throughput, time to first
    token (TTFT), time per output token (TPOT), inter-token and end-to-end latency, and the latency of /health
    under that load, probed from a separate process.

    Servers given as commands are started on a free port ({port} in the command, else --port is appended) and
    always stopped at the end. With several servers, rounds alternate (A, B, A, B, ...). An idle server still
    uses processor time, so servers started here are frozen while another one is measured.

    \b
    Examples:
      vllm-cli bench serve --url http://127.0.0.1:8000
      vllm-cli bench serve --cmd "vllm-cli serve" --vs "vllm serve MODEL --enforce-eager"
      vllm-cli bench serve --url http://127.0.0.1:8000 --prompt-tokens 6000 --max-tokens 1 --concurrency 64

    Exit codes: 0 fine; 1 requests failed, or a server exited; 2 usage; 3 a server did not start.
    """
    ours, theirs = (
        [{"command": each} for each in options.pop(commands)] + [{"url": each} for each in options.pop(urls)]
        for commands, urls in (("commands", "urls"), ("other_commands", "other_urls"))
    )
    if not ours:
        raise click.UsageError("Name a server to measure: --cmd COMMAND or --url URL.")
    targets = build_targets(ours, theirs, (options.pop("model"), options.pop("vs_model")))
    options["api_key"] = options["api_key"] or env.OPENAI_API_KEY.get()
    json_path = options.pop("json_path")

    from vllm_cli.bench.report import run_and_publish
    from vllm_cli.bench.serve import ServeConfig, measure_serving

    return run_and_publish(measure_serving(ServeConfig(targets=targets, **options)), json_path)
