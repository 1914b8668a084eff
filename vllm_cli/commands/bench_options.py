"""Options that benchmarks share, and the types of their values; imports nothing heavy."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from envs.registry import env
from vllm_cli.bench.config import Output, TargetSpec

F = TypeVar("F", bound=Callable[..., Any])


class Levels(click.ParamType):
    """Comma-separated numbers, each 1 or more."""

    name = "n,n,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Numbers in ascending order, each once."""
        try:
            levels = sorted({int(part) for part in str(value).split(",")})
        except ValueError:
            levels = [0]
        if levels[0] < 1:
            self.fail(f"{value!r} is not a list such as 1,8,32.", param, ctx)
        return tuple(levels)


class Percentage(click.ParamType):
    """A share such as `5%`."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """`5%` and `5` both become 0.05."""
        try:
            percent = float(str(value).removesuffix("%"))
        except ValueError:
            percent = -1.0
        if not 0 <= percent < 100:
            self.fail(f"{value!r} is not a percentage such as 5%.", param, ctx)
        return percent / 100


class ShellWords(click.ParamType):
    """A command as it is typed in a shell."""

    name = "command"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Fails on an unclosed quote or an empty command."""
        try:
            words = shlex.split(value)
        except ValueError as err:
            self.fail(f"{value!r} is not a command: {err}.", param, ctx)
        if not words:
            self.fail("the command is empty.", param, ctx)
        return str(value)


class ServerUrl(click.ParamType):
    """The address of a running server."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Adds http:// if the scheme is missing."""
        address = str(value) if "://" in str(value) else f"http://{value}"
        if not address.startswith(("http://", "https://")):
            self.fail(f"{value!r} is not an address such as http://127.0.0.1:8000.", param, ctx)
        return address


class ResultFile(click.Path):
    """A file that is written at the end of the run; checked before the run."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, allow_dash=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Fails if the folder does not exist."""
        path = Path(str(super().convert(value, param, ctx)))
        if not path.parent.is_dir():
            self.fail(f"{str(path.parent)!r} is not a folder.", param, ctx)
        return path


COMMAND, URL = ShellWords(), ServerUrl()
SECONDS, COUNT = click.FloatRange(0, min_open=True), click.IntRange(1)
ready_timeout_option = click.option(
    "--ready-timeout",
    "ready_timeout_s",
    type=SECONDS,
    default=600,
    metavar="SECONDS",
    help="Longest wait for a server to become ready.",
)
endpoint_option = click.option(
    "--endpoint",
    type=click.Choice(["completions", "chat"]),
    default="completions",
    help="Route of the requests: /v1/completions or /v1/chat/completions.",
)


def side_options(command: F) -> F:
    """Options that name the measured servers."""
    return _add(
        command,
        click.option("--cmd", "commands", multiple=True, type=COMMAND, help="Command that starts a server to measure."),
        click.option("--url", "urls", multiple=True, type=URL, help="Address of a running server to measure."),
        click.option(
            "--vs", "other_commands", multiple=True, type=COMMAND, help="Command that starts a server to compare with."
        ),
        click.option(
            "--vs-url", "other_urls", multiple=True, type=URL, help="Address of a running server to compare with."
        ),
        click.option(
            "--name",
            "names",
            multiple=True,
            show_default="A, B, ...",
            help="Name of a server in the report, in the order --cmd, --url, --vs, --vs-url.",
        ),
        click.option("--model", show_default="the first that the server lists", help="Model to request."),
        click.option("--vs-model", show_default="--model", help="Model to request from the servers to compare with."),
    )


def load_options(command: F) -> F:
    """Options for idle servers, the seed, the key and time-outs."""
    return _add(
        command,
        click.option(
            "--idle",
            type=click.Choice(["pause", "run", "stop"]),
            default="pause",
            help="Freeze started servers while another one is measured, leave them running, or stop them.",
        ),
        click.option("--seed", type=int, default=0, help="Seed of the requests."),
        click.option("--api-key", show_default="OPENAI_API_KEY", help="Key to send."),
        ready_timeout_option,
        click.option(
            "--request-timeout",
            "request_timeout_s",
            type=SECONDS,
            default=600,
            metavar="SECONDS",
            help="Longest time for one response; then the request has failed.",
        ),
    )


def output_options(command: F) -> F:
    """Options for the result file and for the judgement."""
    return _add(
        command,
        click.option("--json", "json_path", type=ResultFile(), help="Write the result as JSON; - is standard output."),
        click.option(
            "--fail-over",
            "tolerance",
            type=Percentage(),
            help="Exit with code 1 if a judged figure is worse than that of another server by more than this share.",
        ),
    )


def own_command(model: str | None = None) -> str:
    """`serve` with this installation's console script, which users start, else with the module."""
    script = Path(sys.executable).with_name("vllm-cli")
    words = [str(script)] if script.exists() else [sys.executable, "-m", "vllm_cli"]
    return shlex.join([*words, "serve", *([model] if model else [])])


def take_output(options: dict[str, Any], *, has_others: bool, others: str = "--vs or --vs-url") -> Output:
    """Takes these options out; --fail-over needs another side."""
    output = Output(json_path=options.pop("json_path"), tolerance=options.pop("tolerance"))
    if output.tolerance is not None and not has_others:
        raise click.UsageError(f"--fail-over needs something to compare with: {others}.")
    return output


def take_targets(options: dict[str, Any]) -> tuple[TargetSpec, ...]:
    """Takes the servers out of the options: --cmd and --url first, then those to compare with."""
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
