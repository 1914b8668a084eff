"""The options of `bench liveness`; the benchmark is imported only when it runs."""

from dataclasses import fields
from typing import Any, get_args

import click

from vllm_cli.bench.config import TargetSpec
from vllm_cli.bench.liveness.config import Kind, LivenessConfig, PayloadShape
from vllm_cli.commands.bench_options import (
    COUNT,
    SECONDS,
    choose_api_key,
    load_options,
    output_options,
    side_options,
    take_output,
    take_targets,
)

_REFUSAL = click.IntRange(400, 599)


@click.command("liveness", context_settings={"max_content_width": 110, "show_default": True})
@side_options
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(get_args(Kind)),
    default=("tokenize-chat",),
    help="Kind of requests; may be repeated.",
)
@click.option("--concurrency", type=COUNT, show_default="300; prompt_embeds 16", help="Requests in flight.")
@click.option(
    "--requests",
    "num_requests",
    type=COUNT,
    show_default="2 for each in flight, at least 8",
    help="Requests per round.",
)
@click.option(
    "--duration", "duration_s", type=SECONDS, metavar="SECONDS", help="Repeat the requests of a round for this time."
)
@click.option("--rounds", "num_rounds", type=COUNT, default=3, help="Measured rounds of each kind.")
@click.option("--turns", type=COUNT, default=60, help="Messages in a conversation.")
@click.option("--turn-chars", type=COUNT, default=200, help="Characters of a message, or of a text to embed.")
@click.option("--image-px", type=COUNT, default=512, help="Width and height of an image.")
@click.option("--embed-rows", type=COUNT, default=8192, help="Tokens in a prompt_embeds tensor.")
@click.option(
    "--embed-hidden", type=COUNT, default=576, help="Width of a prompt_embeds tensor: the model's hidden size."
)
@click.option("--batch", type=COUNT, default=8, help="Texts to embed in one request.")
@click.option("--max-tokens", type=COUNT, default=1, help="Tokens to generate.")
@click.option(
    "--accept-status", "accepted_statuses", multiple=True, type=_REFUSAL, help="Error status that counts as served."
)
@load_options
@output_options
def liveness(**options: Any) -> int:
    """Measure whether a server's event loop stays free under requests that are expensive to prepare.

    A fixed number of requests is kept in flight: long conversations to tokenize, images to decode, tensors to
    unpack, batches of texts to embed. Meanwhile a separate process probes /health 50 times a second; the
    latency of a probe that was due while an earlier one still waited counts from its due time. For each kind
    of load the report has the throughput and latency of the load, the latency of /health, the delay of the
    probe process itself and, from the server's /metrics if available, the delay of its event loop.

    \b
    Kinds:
      tokenize-chat   /tokenize with --turns messages of --turn-chars characters
      chat            /v1/chat/completions with the same, streamed
      images          /v1/chat/completions with a text and a JPEG of --image-px, streamed
      prompt_embeds   /v1/completions with a tensor of [--embed-rows, --embed-hidden], streamed
      pooling         /v1/embeddings with --batch texts of --turn-chars characters

    No two conversations, images or batches of a run are equal, so no cache helps; all sides get the same. A
    server may have done the work before it rejects a request as too long: --accept-status 400 counts that as
    served.

    Servers given as commands are started on a free port ({port} in the command, else --port is appended) and
    always stopped at the end. With several servers, rounds alternate (A, B, A, B, ...), after a warm-up that
    is not measured. Servers started here are frozen while another one is measured; --idle run leaves them
    running, --idle stop stops them and starts them again for each round.

    With --fail-over, the first server is judged against the others: requests per second and the p99 of
    /health.

    \b
    Examples:
      vllm-cli bench liveness --url http://127.0.0.1:8000 --kind tokenize-chat --kind chat --turns 30
      vllm-cli bench liveness --cmd "vllm-cli serve" --vs "vllm serve MODEL --enforce-eager"
      vllm-cli bench liveness --url http://127.0.0.1:8000 --kind prompt_embeds --embed-hidden 4096

    Exit codes: 0 fine; 1 worse than --fail-over allows, or requests failed; 2 usage; 3 a server did not
    start.
    """
    targets = take_targets(options)
    output = take_output(options, has_others=len(targets) > 1)
    config = _build_config(targets, options)

    from vllm_cli.bench.liveness.benchmark import LivenessBenchmark

    return LivenessBenchmark(config).measure(output)


def _build_config(targets: tuple[TargetSpec, ...], options: dict[str, Any]) -> LivenessConfig:
    shape = PayloadShape(**{item.name: options.pop(item.name) for item in fields(PayloadShape)})
    options["kinds"] = tuple(dict.fromkeys(options["kinds"]))
    options["api_key"] = choose_api_key(options["api_key"])
    return LivenessConfig(targets=targets, shape=shape, **options)
