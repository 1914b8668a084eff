"""Options that benchmarks share, and their conversion; imports the standard library and click only."""

import shlex
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from envs.registry import env
from vllm_cli.commands.bench_types import OutputFile, Percentage, ServerAddress, ShellWords
from vllm_cli.flags.param_types import Secret

if TYPE_CHECKING:
    from vllm_cli.bench.config import Files, TargetSpec

F = TypeVar("F", bound=Callable[..., Any])

COMMAND, URL = ShellWords(), ServerAddress()
SECONDS, COUNT = click.FloatRange(0, min_open=True), click.IntRange(1)
_BASELINE_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


def side_options(command: F) -> F:
    """Options that name the measured servers."""
    return _add(
        command,
        click.option("--cmd", "commands", multiple=True, type=COMMAND, help="Command that starts a server to measure."),
        click.option("--url", "urls", multiple=True, type=URL, help="Address of a running server to measure."),
        click.option("--vs", "other_commands", multiple=True, type=COMMAND, help="Command of one to compare with."),
        click.option("--vs-url", "other_urls", multiple=True, type=URL, help="Address of one to compare with."),
        click.option("--name", "names", multiple=True, help="Name of a side, in this order.  [default: A, B, ...]"),
        click.option("--model", help="Model to request.  [default: the first that the server lists]"),
        click.option("--vs-model", help="Model to request from the servers to compare with.  [default: --model]"),
    )


def load_options(command: F) -> F:
    """Options for idle servers, the seed, the key and time-outs."""
    return _add(
        command,
        click.option("--idle", type=click.Choice(["pause", "run", "stop"]), default="pause", help="See above."),
        click.option("--seed", type=int, default=0, help="Seed of the requests."),
        click.option("--api-key", type=Secret(), help="Key to send.  [default: OPENAI_API_KEY]"),
        click.option("--ready-timeout", "ready_timeout_s", type=SECONDS, default=600, metavar="SECONDS"),
        click.option("--request-timeout", "request_timeout_s", type=SECONDS, default=600, metavar="SECONDS"),
    )


def file_options(command: F) -> F:
    """Options for result files and for the judgement."""
    return _add(
        command,
        click.option("--json", "json_path", type=OutputFile(allow_dash=True), help="Result as JSON; - is stdout."),
        click.option("--html", "html_path", type=OutputFile(), help="Result as a web page with a chart."),
        click.option("--baseline", "baseline_path", type=_BASELINE_FILE, help="Earlier --json file to compare with."),
        click.option(
            "--fail-over", "tolerance", type=Percentage(), help="Fail if a figure is worse by more.  [default: 5%]"
        ),
    )


def own_command(model: str | None = None) -> str:
    """`serve` with this installation's console script, which users start, else with the module."""
    script = Path(sys.executable).with_name("vllm-cli")
    words = [str(script)] if script.exists() else [sys.executable, "-m", "vllm_cli"]
    return shlex.join([*words, "serve", *([model] if model else [])])


def take_files(options: dict[str, Any], *, has_others: bool, others: str = "--vs or --vs-url") -> "Files":
    """Takes the files out of the options; --fail-over needs a baseline or another side."""
    from vllm_cli.bench.config import Files

    names = {field.name for field in fields(Files)} & options.keys()
    files = Files(**{name: options.pop(name) for name in names})
    if files.tolerance is not None and files.baseline_path is None and not has_others:
        raise click.UsageError(f"--fail-over needs something to compare with: --baseline, {others}.")
    return files


def take_targets(options: dict[str, Any]) -> "tuple[TargetSpec, ...]":
    """Takes the servers out of the options: --cmd and --url first, then those to compare with."""
    from vllm_cli.bench.config import TargetSpec

    ours, theirs = (
        [{"command": command} for command in options.pop(commands)] + [{"url": url} for url in options.pop(urls)]
        for commands, urls in (("commands", "urls"), ("other_commands", "other_urls"))
    )
    if not ours:
        raise click.UsageError("Name a server to measure: --cmd COMMAND or --url URL.")
    model, other_model = options.pop("model"), options.pop("vs_model")
    models = [model] * len(ours) + [other_model or model] * len(theirs)
    sides = zip(complete_names(options.pop("names"), len(models)), models, ours + theirs, strict=True)
    return tuple(TargetSpec(name=name, model=model, **where) for name, model, where in sides)


def complete_names(names: tuple[str, ...], num_sides: int) -> tuple[str, ...]:
    """The given names, then letters; raises if two sides have the same name."""
    names += tuple(chr(ord("A") + index) for index in range(len(names), num_sides))
    if len(names) > num_sides or len(set(names)) < len(names):
        raise click.UsageError(f"--name: {num_sides} different names are needed at most, got {', '.join(names)}.")
    return names


def choose_api_key(option: str | None) -> str | None:
    """The option, else the environment variable."""
    return option or env.OPENAI_API_KEY.get()


def _add(command: F, *options: Callable[[F], F]) -> F:
    """Adds options in the order of the help."""
    for option in reversed(options):
        command = option(command)
    return command
