"""The options of `bench serve`; the benchmark is imported only when it runs."""

from typing import Any

import click

from vllm_cli.bench.config import TargetSpec
from vllm_cli.bench.serve.config import OPEN_LOOP, ServeBenchConfig
from vllm_cli.commands.bench_options import (
    COUNT,
    Levels,
    choose_api_key,
    endpoint_option,
    load_options,
    output_options,
    side_options,
    take_output,
    take_targets,
)


@click.command("serve", context_settings={"max_content_width": 110, "show_default": True})
@side_options
@click.option("--concurrency", "levels", type=Levels(), show_default="1,8,32", help="Requests in flight.")
@click.option(
    "--request-rate",
    type=click.FloatRange(0, min_open=True),
    help="Open loop: requests per second on average, at random times (Poisson), however many are in flight; `inf` "
    "sends all at once.",
)
@click.option(
    "--requests",
    "--num-prompts",
    "num_requests",
    type=COUNT,
    show_default="4 for each in flight, at least 8; 100 with --request-rate",
    help="Requests per round.",
)
@click.option("--rounds", "num_rounds", type=COUNT, default=3, help="Measured rounds of each --concurrency.")
@endpoint_option
@click.option("--prompt-tokens", type=COUNT, default=64, help="Approximate length of the prompts.")
@click.option(
    "--shared-prefix-tokens",
    type=click.IntRange(0),
    default=0,
    help="Approximate length of a text that is put before all prompts, as a system prompt would be.",
)
@click.option("--max-tokens", type=COUNT, default=64, help="Tokens to generate.")
@click.option(
    "--ignore-eos/--no-ignore-eos",
    default=True,
    help="Generate --max-tokens tokens, also after an end token, if the server accepts `ignore_eos`.",
)
@load_options
@output_options
def serve(**options: Any) -> int:
    """Measure a server with the OpenAI API, alone or against others.

    A fixed number of requests is kept in flight, level by level, or they are sent at a rate (--request-rate).
    The report has throughput, time to first token (TTFT), time per output token (TPOT), inter-token and
    end-to-end latency, and the latency of /health under that load, probed from a separate process.

    Servers given as commands are started on a free port ({port} in the command, else --port is appended) and
    always stopped at the end. With several servers, rounds alternate (A, B, A, B, ...). An idle server still
    uses processor time, so servers started here are frozen while another one is measured; --idle run leaves
    them running, --idle stop stops them and starts them again for each round.

    With --fail-over, the first server is judged against the others: throughput and median time to first
    token.

    \b
    Examples:
      vllm-cli bench serve --url http://127.0.0.1:8000
      vllm-cli bench serve --cmd "vllm-cli serve" --vs "vllm serve MODEL --enforce-eager"
      vllm-cli bench serve --url http://127.0.0.1:8000 --request-rate 4 --num-prompts 200
      vllm-cli bench serve --cmd "vllm-cli serve" --vs "/opt/old/bin/vllm-cli serve" --fail-over 5%

    Exit codes: 0 fine; 1 slower than --fail-over allows, or requests failed; 2 usage; 3 a server did not
    start.
    """
    targets = take_targets(options)
    output = take_output(options, has_others=len(targets) > 1)
    config = _build_config(targets, options)

    from vllm_cli.bench.serve.benchmark import ServeBenchmark

    return ServeBenchmark(config).measure(output)


def _build_config(targets: tuple[TargetSpec, ...], options: dict[str, Any]) -> ServeBenchConfig:
    levels = options.pop("levels")
    if options["request_rate"] is not None:
        if levels:
            raise click.UsageError(
                "--concurrency is the number of requests in flight, which --request-rate leaves open."
            )
        levels = (OPEN_LOOP,)
    if levels:
        options["levels"] = levels
    return ServeBenchConfig(targets=targets, **options | {"api_key": choose_api_key(options["api_key"])})
