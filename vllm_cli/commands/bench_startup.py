"""The options of `bench startup`; the benchmark is imported only when it runs."""

import shlex
import sys
from pathlib import Path
from typing import Any, Final

import click

from envs.registry import env
from startup.download.obtain import resolve_model
from startup.model.request import ModelRequest
from vllm_cli.bench.config import TargetSpec
from vllm_cli.commands.bench_options import COUNT, build_targets, command, shared_options

_STATES: Final = ("warm", "cold-pages", "standby")


@click.command("startup", context_settings={"max_content_width": 110, "show_default": True})
@click.option("--cmd", "command", type=command, show_default="vllm-cli serve", help="Command that starts a server.")
@click.option("--model", help="Folder or hub id of the model of the default command; its files are evicted.")
@click.option("--request-model", show_default="the first that the server lists", help="Model to request.")
@click.option(
    "--vs-request-model", show_default="--request-model", help="Model to request from the servers to compare with."
)
@click.option("--rounds", "num_rounds", type=COUNT, default=5, help="Measured starts of each server from each state.")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(_STATES),
    default=("warm",),
    help="State of the caches before a start, or a standby that has the imports.",
)
@click.option("--standby-model", metavar="MODEL", help="Model that the standby keeps too: its --model.")
@click.option(
    "--evict",
    "evict_paths",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    show_default="the models' files",
    help="File or folder to evict from the page cache, for cold-pages.",
)
@click.option(
    "--pause", "pause_s", type=click.FloatRange(0), default=1, metavar="SECONDS", help="Pause between two starts."
)
@shared_options
def startup(**options: Any) -> int:
    """Time the start of a server, from the exec of its command to the first token at a client.

    The report has the times until the server listens (a connection is accepted), is healthy (/health answers
    200) and has sent the first token of a streamed completion, and the latency and refusals of probes that a
    separate process sends 20 times a second; the JSON also has the phases from /startupz.

    Each command is started on a free port ({port} in the command, else --port is appended) and always stopped
    with all its processes. The first start of each server is not measured. Then rounds alternate, every other
    round in the opposite order.

    States: warm; cold-pages, where the model's files are evicted from the page cache and the report shows
    what stayed; standby, with warm caches and a `vllm-cli standby` that the benchmark starts after the first
    start, with the command's variables and Python environment, and stops at its end. A start that cannot be
    forked from it ends the run with exit code 3. Commands of other programs start as from warm. All other
    states use no standby.

    \b
    Examples:
      vllm-cli bench startup
      vllm-cli bench startup --model DIR --vs "vllm serve DIR --enforce-eager" --rounds 7
      vllm-cli bench startup --model DIR --state warm --state cold-pages --state standby

    Exit codes: 0 fine; 2 usage; 3 a command did not become ready.
    """
    model = options.pop("model")
    ours = [{"command": options.pop("command") or _own_command(model)}]
    theirs = [{"command": each} for each in options.pop("other_commands")]
    models = (options.pop("request_model"), options.pop("vs_request_model"))
    targets = build_targets(ours, theirs, models)
    options["api_key"] = options["api_key"] or env.OPENAI_API_KEY.get()
    json_path = options.pop("json_path")
    options["states"] = tuple(dict.fromkeys(options["states"]))
    if "cold-pages" in options["states"] and not options["evict_paths"]:
        options["evict_paths"] = tuple(_find_models(model, targets))

    from vllm_cli.bench.report import run_and_publish
    from vllm_cli.bench.startup import StartupConfig, measure_startup

    return run_and_publish(measure_startup(StartupConfig(targets=targets, **options)), json_path)


def _own_command(model: str | None) -> str:
    """`serve` with this installation's console script, which users start, else with the module."""
    script = Path(sys.executable).with_name("vllm-cli")
    words = [str(script)] if script.exists() else [sys.executable, "-m", "vllm_cli"]
    return shlex.join([*words, "serve", *([model] if model else [])])


def _find_models(model: str | None, targets: tuple[TargetSpec, ...]) -> list[Path]:
    """The model folders among the commands' words, and the model's own; raises ModelNotFoundError."""
    words = [Path(word) for target in targets for word in shlex.split(target.command or "")]
    named = [path for path in words if (path / "config.json").is_file()]
    return named if named and model is None else [*named, resolve_model(ModelRequest(model=model)).path]
