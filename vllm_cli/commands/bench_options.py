"""Options that benchmarks share, and the types of their values; imports nothing heavy."""

import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from vllm_cli.bench.config import TargetSpec

F = TypeVar("F", bound=Callable[..., Any])

SECONDS, COUNT = click.FloatRange(0, min_open=True), click.IntRange(1)


def command(value: str) -> str:
    """Shell words."""
    with suppress(ValueError):
        if shlex.split(value):
            return value
    raise click.BadParameter(f"{value!r} is not a command: it is empty, or a quote is not closed.")


def url(value: str) -> str:
    """The address of a running server; without a scheme, http:// is added."""
    address = value if "://" in value else f"http://{value}"
    if address.startswith(("http://", "https://")):
        return address
    raise click.BadParameter(f"{value!r} is not an address such as http://127.0.0.1:8000.")


def file(value: str) -> Path:
    """A file that is written at the end of the run; its folder is checked before."""
    path = Path(value)
    if path.is_dir() or not path.parent.is_dir():
        raise click.BadParameter(f"{value!r} is not a file in an existing folder.")
    return path


def shared_options(function: F) -> F:
    """Options of all benchmarks: the commands to compare with, the requests, and the result."""
    for option in reversed(
        (
            click.option(
                *("--vs", "other_commands"), multiple=True, type=command, help="Command of a server to compare with."
            ),
            click.option(
                "--endpoint",
                type=click.Choice(["completions", "chat"]),
                default="completions",
                help="Route of the requests: /v1/completions or /v1/chat/completions.",
            ),
            click.option("--api-key", show_default="OPENAI_API_KEY", help="Key to send."),
            click.option(
                "--ready-timeout",
                "ready_timeout_s",
                type=SECONDS,
                default=600,
                metavar="SECONDS",
                help="Longest wait for a server to become ready.",
            ),
            click.option("--json", "json_path", type=file, help="Write the result as JSON; - is standard output."),
        )
    ):
        function = option(function)
    return function


def build_targets(
    ours: list[dict[str, str]], theirs: list[dict[str, str]], models: tuple[str | None, str | None]
) -> tuple[TargetSpec, ...]:
    """The sides, named A, B, ...; `models` are those to request from ours and from theirs."""
    model, other_model = models
    wanted = [model] * len(ours) + [other_model or model] * len(theirs)
    sides = zip(wanted, ours + theirs, strict=True)
    return tuple(TargetSpec(name=chr(ord("A") + i), model=model, **where) for i, (model, where) in enumerate(sides))
