"""`python -m tools.soak`: the options of the soak test; `make test-soak` runs it on the default model."""

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from server.errors import ConfigError
from tools.soak.config import SoakConfig
from tools.soak.report import write_soak_report
from tools.soak.run import run_soak
from vllm_cli.bench.config import TargetSpec
from vllm_cli.bench.progress import Progress
from vllm_cli.bench.results import encode_result
from vllm_cli.commands.bench_options import (
    COMMAND,
    COUNT,
    SECONDS,
    Percentage,
    ResultFile,
    choose_api_key,
    own_command,
)
from vllm_cli.interruption import Interrupted

_MINUTES = click.FloatRange(0, min_open=True)


@click.command("soak", context_settings={"max_content_width": 110, "show_default": True})
@click.option("--cmd", "command", type=COMMAND, help="Command that starts the server.  [default: vllm-cli serve]")
@click.option("--model", help="Model to request.  [default: the first that the server lists]")
@click.option("--minutes", type=_MINUTES, default=30, help="Duration of the load, warm-up included.")
@click.option("--warm-up", "warm_up_share", type=Percentage(), default="20%", help="Share of it that is not judged.")
@click.option("--concurrency", type=COUNT, default=12, help="Active clients; half as many only hold connections.")
@click.option("--burst", type=click.IntRange(0), default=64, help="Requests sent at once in a burst; 0: no bursts.")
@click.option("--burst-interval", "burst_interval_s", type=SECONDS, default=30, metavar="SECONDS")
@click.option("--prompt-tokens", type=COUNT, default=600, help="Approximate length of the longest prompts.")
@click.option("--max-tokens", type=COUNT, default=64, help="Length of the longest answers.")
@click.option("--sample-interval", "sample_interval_s", type=SECONDS, default=5, metavar="SECONDS")
@click.option("--max-growth", type=Percentage(), default="1%", help="Growth of memory in ten minutes that is allowed.")
@click.option("--settle-timeout", "settle_timeout_s", type=SECONDS, default=60, metavar="SECONDS")
@click.option("--seed", type=int, default=0, help="Seed of the requests.")
@click.option("--api-key", help="Key to send.  [default: OPENAI_API_KEY]")
@click.option("--ready-timeout", "ready_timeout_s", type=SECONDS, default=600, metavar="SECONDS")
@click.option("--request-timeout", "request_timeout_s", type=SECONDS, default=600, metavar="SECONDS")
@click.option("--json", "json_path", type=ResultFile(), help="Result as JSON; - is stdout.")
def soak(*, command: str | None, model: str | None, json_path: Path | None, **options: Any) -> None:
    """Put a server under mixed load for a long time, and check that nothing grows, stays behind or gets lost.

    Clients send completions and chats, streamed and not, with grammars, tools, log-probabilities, several
    choices and prompts with a common prefix. Some disconnect, read slowly or not at
    all, send invalid JSON, invalid HTTP or oversized bodies, pipeline, hold idle connections, or scrape
    /metrics; some come in bursts. /health is probed 50 times a second. Kinds of requests that the server
    rejects at the start are left out; the report lists them.

    The server is started on a free port ({port} in the command, else --port is appended) and stopped at the
    end. The warm-up is followed by a pause; then come the judged load and another pause.

    \b
    The soak fails on
      memory (RSS of each process and of all together) that grows by more than --max-growth in ten minutes,
      or in the whole run if that is shorter, and by more than 1 MiB
      more open files, threads or processes in the last pause than in the first
      requests that still run or wait in the last pause, or still hold KV cache, according to /metrics
      a 5xx response other than 503 and 504, an error in a stream, a /health that is not 200
      a request without an answer, a stream that ends without [DONE] or an error

    \b
    Caches that grow up to a limit must be full after the warm-up: give them small limits, as in the
    second example.

    \b
    Examples:
      python -m tools.soak --minutes 5
      python -m tools.soak --cmd "vllm-cli serve --kv-cache-memory-bytes 256M" --json soak.json
      make test-soak ARGS="--minutes 60"

    Exit codes: 0 passed; 1 failed, or the server exited; 2 usage; 3 the server did not start.
    """
    options["api_key"] = choose_api_key(options["api_key"])
    try:
        config = SoakConfig(target=TargetSpec(name="A", command=command or own_command(), model=model), **options)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    sys.exit(_run(config, json_path))


def _run(config: SoakConfig, json_path: Path | None) -> int:
    try:
        with closing(Progress(sys.stderr)) as progress:
            result = run_soak(config, progress)
    except Interrupted as interrupted:
        return interrupted.exit_code
    is_piped = json_path == Path("-")
    write_soak_report(result, sys.stderr if is_piped else sys.stdout)
    if is_piped:
        sys.stdout.write(encode_result(result))
    elif json_path is not None:
        json_path.write_text(encode_result(result), encoding="utf-8")
    return 0 if result.is_fine else 1


if __name__ == "__main__":
    soak(prog_name="python -m tools.soak")
