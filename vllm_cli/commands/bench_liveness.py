"""The command `bench liveness`: its options; the benchmark itself is imported only when it runs."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from vllm_cli.commands.bench_options import (
    COUNT,
    SECONDS,
    choose_api_key,
    conduct_options,
    file_options,
    side_options,
    take_files,
    take_targets,
)

if TYPE_CHECKING:
    from vllm_cli.bench.config import TargetSpec
    from vllm_cli.bench.liveness.config import LivenessConfig

_KINDS = ("tokenize-chat", "chat", "images", "prompt_embeds", "pooling", "mixed")
_DTYPES = ("bfloat16", "float16", "float32")
_REFUSAL = click.IntRange(400, 599)


@click.command("liveness", context_settings={"max_content_width": 110, "show_default": True})
@side_options
@click.option("--kind", "kinds", multiple=True, type=click.Choice(_KINDS), default=("tokenize-chat",), help="Of load.")
@click.option("--concurrency", type=COUNT, help="Requests in flight.  [default: 300; prompt_embeds 16; mixed 100]")
@click.option("--requests", "num_requests", type=COUNT, help="Per round.  [default: 2 for each in flight, at least 8]")
@click.option("--duration", "duration_s", type=SECONDS, metavar="SECONDS", help="Send them again until this is over.")
@click.option("--rounds", "num_rounds", type=COUNT, default=3, help="Measured rounds of each kind.")
@click.option("--turns", type=COUNT, default=60, help="Messages of a conversation.")
@click.option("--turn-chars", type=COUNT, default=200, help="Characters of a message, or of a text to embed.")
@click.option("--image-px", type=COUNT, default=512, help="Width and height of an image.")
@click.option("--embed-rows", type=COUNT, default=8192, help="Tokens in a prompt_embeds tensor.")
@click.option("--embed-hidden", type=COUNT, default=576, help="The model's hidden size, for prompt_embeds.")
@click.option("--embed-dtype", type=click.Choice(_DTYPES), default="bfloat16", help="For prompt_embeds.")
@click.option("--batch", type=COUNT, default=8, help="Texts to embed in one request.")
@click.option("--max-tokens", type=COUNT, default=1, help="Tokens to generate.")
@click.option(
    "--accept-status", "accepted_statuses", multiple=True, type=_REFUSAL, help="Answers that count as served."
)
@conduct_options
@file_options
def liveness(**options: Any) -> int:
    """Show whether a server's event loop stays free while much is asked of it.

    A fixed number of requests is kept in flight whose preparation is hard work: long conversations to tokenize,
    images to decode, tensors to unpack, batches of texts to embed. Meanwhile a process of its own asks for /health 50
    times a second; a probe that was due while the previous one hung counts from when it was due. Reported are, for
    each kind of load, what the load got and how long /health took, how late the probe's own process woke up, and
    where the server's /metrics tell it, how late its event loop was.

    \b
    Kinds:
      tokenize-chat   /tokenize with --turns messages of --turn-chars characters
      chat            /v1/chat/completions with the same, streamed
      images          /v1/chat/completions with a text and a JPEG of --image-px, streamed
      prompt_embeds   /v1/completions with a tensor of [--embed-rows, --embed-hidden], streamed
      pooling         /v1/embeddings with --batch texts of --turn-chars characters
      mixed           the ones above in turn, as far as all servers take them

    No two conversations, images or batches of a run are alike, so no cache helps; all sides get the same. A server
    may have done the work before it refuses a request as too long: --accept-status 400 counts that as served.

    Servers given as commands are started on a free port ({port} in the command, else --port is appended) and stopped
    whatever happens. With several servers, rounds take turns (A, B, A, B, ...), after an uncounted warm-up. Those
    started here are frozen while another one is measured; --idle run leaves them awake, --idle stop starts them
    afresh for each turn.

    With --baseline, A is judged against an earlier run; with --fail-over alone, against the other servers of this
    run. Requests per second and the p99 of /health decide.

    \b
    Examples:
      vllm-cli bench liveness --url http://127.0.0.1:8000 --kind tokenize-chat --kind chat --turns 30
      vllm-cli bench liveness --cmd "vllm-cli serve" --vs "vllm serve MODEL --enforce-eager" --html alive.html
      vllm-cli bench liveness --url http://127.0.0.1:8000 --kind prompt_embeds --embed-hidden 4096 --accept-status 400

    Exit codes: 0 fine; 1 worse than --fail-over allows, or requests failed; 2 usage; 3 a server did not start.
    """
    targets = take_targets(options)
    files = take_files(options, has_others=len(targets) > 1)
    config = _build_config(targets, options)

    from vllm_cli.bench.liveness.benchmark import LIVENESS

    return LIVENESS.measure(config, files)


def _build_config(targets: "tuple[TargetSpec, ...]", options: dict[str, Any]) -> "LivenessConfig":
    from vllm_cli.bench.liveness.config import LivenessConfig, PayloadShape

    shape = PayloadShape(**{item.name: options.pop(item.name) for item in fields(PayloadShape)})
    options["kinds"] = tuple(dict.fromkeys(options["kinds"]))
    options["api_key"] = choose_api_key(options["api_key"])
    return LivenessConfig(targets=targets, shape=shape, **options)
