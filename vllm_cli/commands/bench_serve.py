"""The command `bench serve`: its options; the benchmark itself is imported only when it runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from envs.registry import env
from vllm_cli.commands.bench_types import Levels, OutputFile, Percentage, ServerAddress, ShellWords

if TYPE_CHECKING:
    from vllm_cli.bench.config import BenchConfig, Files, TargetSpec


_COMMAND, _URL = ShellWords(), ServerAddress()
_SECONDS, _COUNT = click.FloatRange(0, min_open=True), click.IntRange(1)
_EARLIER_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("serve", context_settings={"max_content_width": 110, "show_default": True})
@click.option("--cmd", "commands", multiple=True, type=_COMMAND, help="Command that starts the server to measure.")
@click.option("--url", "urls", multiple=True, type=_URL, help="Address of a running server to measure.")
@click.option("--vs", "rival_commands", multiple=True, type=_COMMAND, help="Command of a server to compare with.")
@click.option("--vs-url", "rival_urls", multiple=True, type=_URL, help="Address of a server to compare with.")
@click.option("--name", "names", multiple=True, help="Name of a side, in this order.  [default: A, B, ...]")
@click.option("--model", help="Model to request.  [default: the first that the server lists]")
@click.option("--vs-model", help="Model to request from the servers to compare with.  [default: --model]")
@click.option("--concurrency", "levels", type=Levels(), default="1,8,32", help="Requests in flight.")
@click.option("--requests", "num_requests", type=_COUNT, help="Per round.  [default: 4 for each in flight, at least 8]")
@click.option("--rounds", "num_rounds", type=_COUNT, default=3, help="Measured rounds per level.")
@click.option("--endpoint", type=click.Choice(["completions", "chat"]), default="completions")
@click.option("--prompt-tokens", type=_COUNT, default=64, help="About how long prompts are.")
@click.option("--max-tokens", type=_COUNT, default=64, help="Tokens to generate.")
@click.option("--ignore-eos/--no-ignore-eos", default=True, help="Never end before --max-tokens, if the server can.")
@click.option("--stream/--no-stream", default=True, help="Only streams show the time to first token.")
@click.option("--idle", type=click.Choice(["pause", "run", "stop"]), default="pause", help="See above.")
@click.option("--seed", type=int, default=0, help="Seed of the prompts.")
@click.option("--api-key", help="Key to send.  [default: OPENAI_API_KEY]")
@click.option("--ready-timeout", "ready_timeout_s", type=_SECONDS, default=600, metavar="SECONDS")
@click.option("--request-timeout", "request_timeout_s", type=_SECONDS, default=600, metavar="SECONDS")
@click.option("--json", "json_path", type=OutputFile(allow_dash=True), help="Result as JSON; - is standard output.")
@click.option("--html", "html_path", type=OutputFile(), help="Result as a web page with bars.")
@click.option("--baseline", "baseline_path", type=_EARLIER_FILE, help="Earlier --json file to compare with.")
@click.option("--fail-over", "tolerance", type=Percentage(), help="How much slower is an error.  [default: 5%]")
def serve(**options: Any) -> int:
    """Measure a server that speaks the OpenAI API, alone or against others.

    A fixed number of requests is kept in flight, level by level. Reported are throughput, time to first token,
    inter-token and end-to-end latency, and, from a process of its own, how fast /health answers under that load.

    Servers given as commands are started on a free port ({port} in the command, else --port is appended) and stopped
    whatever happens. With several servers, rounds take turns (A, B, A, B, ...). On a small machine an idle server
    still costs processor time, so those started here are frozen while another one is measured; --idle run leaves them
    awake, --idle stop starts them afresh for each turn.

    With --baseline, A is judged against an earlier run; with --fail-over alone, against the other servers of this run.
    Throughput and median time to first token decide.

    \b
    Examples:
      vllm-cli bench serve --url http://127.0.0.1:8000
      vllm-cli bench serve --cmd "vllm-cli serve" --vs "vllm serve MODEL --enforce-eager" --html result.html
      vllm-cli bench serve --cmd "vllm-cli serve" --baseline main.json --fail-over 5%

    Exit codes: 0 fine; 1 slower than --fail-over allows, or requests failed; 2 usage; 3 a server did not start.
    """
    files = _build_files(options)
    config = _build_config(options)
    if files.tolerance is not None and files.baseline_path is None and len(config.targets) == 1:
        raise click.UsageError("--fail-over needs something to compare with: --baseline, --vs or --vs-url.")

    from vllm_cli.bench.serve import SERVE

    return SERVE.measure(config, files)


def _build_files(options: dict[str, Any]) -> "Files":
    from vllm_cli.bench.config import Files

    return Files(**{name: options.pop(name) for name in ("json_path", "html_path", "baseline_path", "tolerance")})


def _build_config(options: dict[str, Any]) -> "BenchConfig":
    from vllm_cli.bench.config import BenchConfig

    targets = _build_targets(options)
    return BenchConfig(targets=targets, **options | {"api_key": options["api_key"] or env.OPENAI_API_KEY.get()})


def _build_targets(options: dict[str, Any]) -> "tuple[TargetSpec, ...]":
    """Take everything about targets out of the options: ours first, then those to compare with."""
    from vllm_cli.bench.config import TargetSpec

    ours, theirs = (
        [{"command": command} for command in options.pop(commands)] + [{"url": url} for url in options.pop(urls)]
        for commands, urls in (("commands", "urls"), ("rival_commands", "rival_urls"))
    )
    if not ours:
        raise click.UsageError("Name a server to measure: --cmd COMMAND or --url URL.")
    model, rival_model, names = options.pop("model"), options.pop("vs_model"), options.pop("names")
    models = [model] * len(ours) + [rival_model or model] * len(theirs)
    names += tuple(chr(ord("A") + index) for index in range(len(names), len(models)))
    if len(names) > len(models) or len(set(names)) < len(names):
        raise click.UsageError(f"--name: {len(models)} different names are needed at most, got {', '.join(names)}.")
    sides = zip(names, models, ours + theirs, strict=True)
    return tuple(TargetSpec(name=name, model=model, **where) for name, model, where in sides)
