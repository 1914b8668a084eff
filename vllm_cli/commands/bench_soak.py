"""The command `bench soak`: its options; the benchmark itself is imported only when it runs."""

from pathlib import Path
from typing import Any

import click

from vllm_cli.commands.bench_options import COMMAND, COUNT, SECONDS, choose_api_key, own_command
from vllm_cli.commands.bench_types import OutputFile, Percentage
from vllm_cli.flags.param_types import Secret

_MINUTES = click.FloatRange(0, min_open=True)


@click.command("soak", context_settings={"max_content_width": 110, "show_default": True})
@click.option("--cmd", "command", type=COMMAND, help="Command that starts the server.  [default: vllm-cli serve]")
@click.option("--model", help="Model to request.  [default: the first that the server lists]")
@click.option("--minutes", type=_MINUTES, default=30, help="How long the load runs, warm-up included.")
@click.option("--warm-up", "warm_up_share", type=Percentage(), default="20%", help="Part of it that is not judged.")
@click.option("--concurrency", type=COUNT, default=12, help="Clients at work; half as many only hold connections.")
@click.option("--burst", type=click.IntRange(0), default=64, help="Requests at once, from time to time; 0 for none.")
@click.option("--burst-interval", "burst_interval_s", type=SECONDS, default=30, metavar="SECONDS")
@click.option("--prompt-tokens", type=COUNT, default=600, help="About how long the longest prompts are.")
@click.option("--max-tokens", type=COUNT, default=64, help="How long the longest answers are.")
@click.option("--sample-interval", "sample_interval_s", type=SECONDS, default=5, metavar="SECONDS")
@click.option("--max-growth", type=Percentage(), default="1%", help="Of memory in ten minutes that is still flat.")
@click.option("--settle-timeout", "settle_timeout_s", type=SECONDS, default=60, metavar="SECONDS")
@click.option("--seed", type=int, default=0, help="Seed of what is sent.")
@click.option("--api-key", type=Secret(), help="Key to send.  [default: OPENAI_API_KEY]")
@click.option("--ready-timeout", "ready_timeout_s", type=SECONDS, default=600, metavar="SECONDS")
@click.option("--request-timeout", "request_timeout_s", type=SECONDS, default=600, metavar="SECONDS")
@click.option("--json", "json_path", type=OutputFile(allow_dash=True), help="Result as JSON; - is stdout.")
@click.option("--html", "html_path", type=OutputFile(), help="Result as a web page with charts.")
def soak(
    *, command: str | None, model: str | None, json_path: Path | None, html_path: Path | None, **options: Any
) -> int:
    """Put a server under mixed load for a long time, and see whether anything grows, stays behind or gets lost.

    Clients complete and chat, streamed and not, with grammars, tools, log-probabilities, several choices, prompts that
    share a beginning and templates of their own; they vanish, read slowly or not at all, make mistakes in JSON and in
    HTTP, pipeline, keep connections for nothing, send too much, scrape /metrics, and come in bursts. /health is asked
    50 times a second. Kinds of requests that the server does not know are left out, and that is told.

    The server is started on a free port ({port} in the command, else --port is appended) and stopped at the end.
    After the warm-up there is a pause; then comes the load that is judged, and another pause.

    \b
    Not fine is
      memory (RSS of each process and of all together) that grows by --max-growth in ten minutes, or in all if that is
      less, and by a MiB
      more open files, threads or processes in the last pause than in the first
      requests that still run or wait then, or hold the KV cache, as /metrics tell
      a response 5xx but 503 and 504, an error in a stream, a /health that is not 200
      a request without an answer, a stream that ends without [DONE] or an error

    \b
    Caches that grow up to a bound should be full after the warm-up: limit them, as the second example does.

    \b
    Examples:
      vllm-cli bench soak --minutes 5 --html soak.html
      vllm-cli bench soak --cmd "vllm-cli serve --kv-cache-memory-bytes 256M --max-num-queued-reqs 48" --json soak.json
      make test-soak ARGS="--minutes 60"

    Exit codes: 0 fine; 1 not fine, or the server ended; 2 usage; 3 it did not start.
    """
    from vllm_cli.bench.config import Files, TargetSpec
    from vllm_cli.bench.soak.config import SoakConfig

    options["api_key"] = choose_api_key(options["api_key"])
    config = SoakConfig(target=TargetSpec(name="A", command=command or own_command(), model=model), **options)

    from vllm_cli.bench.soak.benchmark import SOAK

    return SOAK.measure(config, Files(json_path=json_path, html_path=html_path))
