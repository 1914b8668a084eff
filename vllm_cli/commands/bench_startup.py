"""The options of `bench startup`; the benchmark is imported only when it runs."""

from pathlib import Path
from typing import Any, Final, get_args

import click

from startup.download.obtain import resolve_model
from startup.model.request import ModelRequest
from vllm_cli.bench.config import TargetSpec
from vllm_cli.bench.startup.config import COLD_PAGES, StartState, StartupBenchConfig
from vllm_cli.commands.bench_options import (
    COMMAND,
    COUNT,
    choose_api_key,
    complete_names,
    endpoint_option,
    output_options,
    own_command,
    ready_timeout_option,
    take_output,
)

_EXISTING: Final = click.Path(exists=True, path_type=Path)
_FOLDER: Final = click.Path(file_okay=False, path_type=Path)


@click.command("startup", context_settings={"max_content_width": 110, "show_default": True})
@click.option(
    "--cmd", "command", type=COMMAND, show_default="vllm-cli serve", help="Command that starts a server to measure."
)
@click.option(
    "--model", help="Folder or hub id of the model of the default command and of --floor; its files are evicted."
)
@click.option(
    "--vs", "other_commands", multiple=True, type=COMMAND, help="Command that starts a server to compare with."
)
@click.option(
    "--floor", "has_floor", is_flag=True, help="Also time a bare script that computes the first token without a server."
)
@click.option(
    "--name",
    "names",
    multiple=True,
    show_default="A, B, ...",
    help="Name of a server in the report, in the order --cmd, --vs.",
)
@click.option("--request-model", show_default="the first that the server lists", help="Model to request.")
@click.option(
    "--vs-request-model",
    show_default="--request-model",
    help="Model to request from the servers to compare with.",
)
@click.option("--rounds", "num_rounds", type=COUNT, default=5, help="Measured starts of each server from each state.")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(get_args(StartState)),
    default=("warm",),
    help="State of the caches before a start, or a standby that has the imports.",
)
@click.option("--standby-model", metavar="MODEL", help="Model that the standby keeps too: its --model.")
@click.option(
    "--evict",
    "evict_paths",
    multiple=True,
    type=_EXISTING,
    show_default="the models' files",
    help="File or folder to evict from the page cache, for cold-pages and cold.",
)
@click.option(
    "--evict-libraries", is_flag=True, help="Also evict the shared libraries of the commands' Python environments."
)
@click.option(
    "--compile-cache",
    type=_FOLDER,
    help="Folder of the compile cache, renamed during starts from cold-compile and cold.",
)
@click.option(
    "--hub",
    metavar="URL",
    help="Stand-in for the hub, for cold-download: `python -m tools.hub FOLDER` in a source checkout prints it.",
)
@click.option("--link", metavar="RATE", help="Rate that the link of --hub gets, such as 100Mbit or 1Gbit.")
@endpoint_option
@click.option("--api-key", show_default="OPENAI_API_KEY", help="Key to send.")
@ready_timeout_option
@click.option(
    "--pause", "pause_s", type=click.FloatRange(0), default=1, metavar="SECONDS", help="Pause between two starts."
)
@output_options
def startup(**options: Any) -> int:
    """Time the start of a server, from the exec of its command to the first token at a client.

    The report has the times until the server listens (a connection is accepted), is healthy (/health answers
    200) and has sent the first token of a streamed completion; the phases from /startupz, if the server has
    it; and the latency and refusals of probes that a separate process sends 20 times a second.

    Each command is started on a free port ({port} in the command, else --port is appended) and always stopped
    with all its processes. The first start of each server is not measured. Then rounds alternate, every other
    round in the opposite order.

    States: warm; cold-pages, where the model's files are evicted from the page cache and the report shows
    what stayed; cold-compile, where --compile-cache is renamed for the start; cold, both; standby, with warm
    caches and a `vllm-cli standby` that the benchmark starts after the first start, with the command's
    variables and Python environment, and stops at its end. A start that cannot be forked from it ends the
    run with exit code 3. Commands of other programs start as from warm. All other states use no standby.

    cold-download: the hub's cache is empty (HF_HOME is a new temporary folder, in $TMPDIR), and the command,
    which names a hub id, downloads the model from --hub over a link of the rate --link, which the same files
    then take once more without a server: the report has the ratio of both times.

    tenth-root, fresh-root and fresh-root-cold start in a root file system of their own, as in a container:
    this machine's files are the image, changes are kept in memory. tenth-root keeps its changes, and begins
    after nine starts; fresh-root has none; fresh-root-cold also has the Python environment and the weights
    evicted from the page cache. They need the rights of root.

    With --fail-over, the server of --cmd is judged against the others and the bare script: the time to the
    first token.

    \b
    Examples:
      vllm-cli bench startup --floor
      vllm-cli bench startup --model DIR --vs "vllm serve DIR --enforce-eager" --rounds 7
      vllm-cli bench startup --model DIR --state warm --state cold-pages --evict-libraries
      vllm-cli bench startup --state warm --state standby --floor
      vllm-cli bench startup --state tenth-root --state fresh-root --state fresh-root-cold
      vllm-cli bench startup --model ORG/MODEL --state cold-download --hub http://127.0.0.1:9000 --link 1Gbit
      vllm-cli bench startup --vs "/opt/old/bin/vllm-cli serve" --fail-over 5%

    Exit codes: 0 fine; 1 slower than --fail-over allows; 2 usage; 3 a command did not become ready.
    """
    has_others = bool(options["other_commands"] or options["has_floor"])
    output = take_output(options, has_others=has_others, others="--vs or --floor")
    config = _build_config(options)

    from vllm_cli.bench.startup.benchmark import StartupBenchmark

    return StartupBenchmark(config).measure(output)


def _build_config(options: dict[str, Any]) -> StartupBenchConfig:
    model, has_floor = options.pop("model"), options.pop("has_floor")
    targets = _build_targets(options, model)
    states = tuple(dict.fromkeys(options.pop("states")))
    if COLD_PAGES.intersection(states) and not options["evict_paths"]:
        options["evict_paths"] = tuple(_find_model_folders(model, targets))
    options["api_key"] = choose_api_key(options["api_key"])
    floor_model = _resolve(model) if has_floor else None
    options["request_timeout_s"] = options["ready_timeout_s"]
    return StartupBenchConfig(targets=targets, states=states, floor_model=floor_model, **options)


def _build_targets(options: dict[str, Any], model: str | None) -> tuple[TargetSpec, ...]:
    """Takes the servers out of the options: side A first, then those to compare with."""
    commands = (options.pop("command") or own_command(model), *options.pop("other_commands"))
    request_model, other_model = options.pop("request_model"), options.pop("vs_request_model")
    models = (request_model, *[other_model or request_model] * (len(commands) - 1))
    names = complete_names(options.pop("names"), len(commands))
    sides = zip(names, commands, models, strict=True)
    return tuple(TargetSpec(name=name, command=command, model=wanted) for name, command, wanted in sides)


def _find_model_folders(model: str | None, targets: tuple[TargetSpec, ...]) -> list[Path]:
    from vllm_cli.bench.startup.caches import find_models

    named = [folder for target in targets for folder in find_models(target.command or "")]
    return named if named and model is None else [*named, _resolve(model)]


def _resolve(model: str | None) -> Path:
    """The model's folder; raises ModelNotFoundError."""
    return resolve_model(ModelRequest(model=model)).path
