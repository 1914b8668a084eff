"""`vllm-cli bench`: times starts, or runs vLLM's `bench serve`. Imports a benchmark only to run it."""

import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from envs.registry import env
from vllm_cli.commands.of_vllm import VllmCommand, vllms_own
from vllm_cli.errors import CommandGroup
from vllm_cli.terminal import SECONDS, Seconds

if TYPE_CHECKING:
    from vllm_cli.bench.target import TargetSpec

_COUNT: Final = click.IntRange(1)
_STATES: Final = ("warm", "standby")


@click.group("bench", cls=CommandGroup)
def bench() -> None:
    """Measure the starts of servers, and the speed of a running server.

    \b
    Examples:
      vllm-cli bench startup --cmd "vllm-cli serve"
      vllm-cli bench serve --base-url http://127.0.0.1:8000 --model MODEL
    """


bench.add_command(VllmCommand("serve", help="vLLM's command: measure throughput and latency of a running server."))


def command(value: str) -> str:
    """Checks that a command can be split into arguments as by a shell. The help shows the function's name."""
    with suppress(ValueError):
        if shlex.split(value):
            return value
    raise click.BadParameter(f"{value!r} is not a command: it is empty, or a quote is not closed.")


def file(value: str) -> Path:
    """The path of a file that is written at the end of the run. Its folder must exist."""
    path = Path(value)
    if path.is_dir() or not path.parent.is_dir():
        raise click.BadParameter(f"{value!r} is not a file in an existing folder.")
    return path


@bench.command(
    "startup", epilog=vllms_own("bench startup"), context_settings={"max_content_width": 110, "show_default": True}
)
@click.option("--cmd", "command", type=command, show_default="vllm-cli serve", help="Command that starts a server.")
@click.option("--model", help="Folder or hub id of the model that the default command serves.")
@click.option("--request-model", show_default="the first that the server lists", help="Model to request.")
@click.option("--vs-request-model", show_default="--request-model", help="Model to request from the other servers.")
@click.option("--rounds", "num_rounds", type=_COUNT, default=5, help="Measured starts of each server and state.")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(_STATES),
    default=("warm",),
    help="State before each start: warm caches, or a running standby.",
)
@click.option("--standby-model", metavar="MODEL", help="The standby's --model.")
@click.option("--pause", "pause_s", type=Seconds(0), default=1, help="Pause between two starts.")
@click.option("--phases", "shows_phases", is_flag=True, help="Show the phases as bars and in a table.")
@click.option(*("--vs", "other_commands"), multiple=True, type=command, help="Command of a server to compare with.")
@click.option(
    "--endpoint",
    type=click.Choice(["completions", "chat"]),
    default="completions",
    help="Route of the requests: /v1/completions or /v1/chat/completions.",
)
@click.option("--api-key", show_default="OPENAI_API_KEY", help="Key to send.")
@click.option(
    *("--ready-timeout", "ready_timeout_s"),
    type=SECONDS,
    default=600,
    help="Longest wait for a server to become ready.",
)
@click.option("--json", "json_path", type=file, help="Write the result as JSON. - is standard output.")
def startup(**options: Any) -> int:
    """Time the start of a server, from the exec of its command to the first token at a client.

    The report has the times until the server listens (a connection is accepted), is healthy (/health answers
    200) and has sent the first token of a streamed completion. It also has the latency and refusals of probes
    that a separate process sends 20 times a second.

    With --phases, the report also divides the time to the first token into phases such as imports,
    configuration, weights, compile and warm-up. For vLLM, even for plain `vllm serve`, a line of the log ends
    each phase. The embedded engine reports the ends on /startupz. Other servers have the phase `server`,
    which lasts until /health answers 200, and the phase `first token`. The JSON always has the phases of each
    start.

    Each command is started on a free port, and always stopped with all its processes. The port replaces
    {port} in the command, or is appended as --port. The first start of each server is not measured. Then each
    round starts all servers. Every other round has the opposite order.

    All caches stay. With the state standby, a `vllm-cli standby` runs from the first start to the end, with
    the command's variables and Python environment. If a server cannot be forked from the standby, the run
    ends with exit code 3. Commands of other programs start as with warm.

    \b
    Examples:
      vllm-cli bench startup
      vllm-cli bench startup --model DIR --vs "vllm serve DIR --enforce-eager" --rounds 7
      vllm-cli bench startup --model DIR --state warm --state standby

    Exit codes: 0 fine; 2 usage; 3 a command did not become ready.
    """
    model = options.pop("model")
    commands = [options.pop("command") or _own_command(model), *options.pop("other_commands")]
    targets = _build_targets(commands, options.pop("request_model"), options.pop("vs_request_model"))
    options["api_key"] = options["api_key"] or env.OPENAI_API_KEY.get()
    json_path = options.pop("json_path")
    options["states"] = tuple(dict.fromkeys(options["states"]))

    from vllm_cli.bench.report import run_and_publish
    from vllm_cli.bench.startup import StartupBenchConfig, measure_startup

    config = StartupBenchConfig(targets=targets, **options)
    return run_and_publish(lambda: measure_startup(config), json_path)


def _build_targets(commands: list[str], model: str | None, other_model: str | None) -> "tuple[TargetSpec, ...]":
    """Names the servers A, B, ... `model` is requested from the first one, `other_model` from all others."""
    from vllm_cli.bench.target import TargetSpec  # noqa: PLC0415 - slow to import for --help

    models = [model, *[other_model or model] * (len(commands) - 1)]
    targets: list[TargetSpec] = []
    for number, command in enumerate(commands):
        side = chr(ord("A") + number)
        targets.append(TargetSpec(name=side, command=command, model=models[number]))
    return tuple(targets)


def _own_command(model: str | None) -> str:
    """The `serve` command of this installation: its console script if there is one, else `python -m`."""
    script = Path(sys.executable).with_name("vllm-cli")
    arguments = [str(script)] if script.exists() else [sys.executable, "-m", "vllm_cli"]
    return shlex.join([*arguments, "serve", *([model] if model else [])])
