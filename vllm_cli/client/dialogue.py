"""Shared by `chat` and `complete`: options, input lines, and the display of one answer."""

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any, Final, TypeVar

import click

from envs.registry import env
from vllm_cli.client.answer import Answer
from vllm_cli.client.api_client import ApiClient
from vllm_cli.errors import ConnectionFailedError

with suppress(ImportError):  # some Pythons are built without it, then input lines cannot be edited
    import readline  # noqa: F401

F = TypeVar("F", bound=Callable[..., Any])

CLEAR: Final = "/clear"
EXIT: Final = "/exit"


def server_options(command: F) -> F:
    """The options for server, model and sampling; server and model are named as in `vllm chat`."""
    for option in (
        click.option(
            "--max-tokens", type=click.IntRange(min=1), help="Most tokens to generate; the server decides if not given."
        ),
        click.option(
            "--temperature",
            type=click.FloatRange(min=0, max=2),
            help="0 always takes the likeliest token, higher is more random; the server decides if not given.",
        ),
        click.option("--stats", is_flag=True, help="Show time to first token and tokens per second of each answer."),
        click.option("--api-key", help="Key to send; OPENAI_API_KEY or VLLM_API_KEY if not given."),
        click.option("--model-name", help="Model that answers; the first that the server lists if not given."),
        click.option(
            "--url",
            default="http://localhost:8000",
            show_default=True,
            help="Address of the server: http(s)://… or unix:/path; /v1 at its end is optional.",
        ),
    ):
        command = option(command)
    return command


class Dialogue:
    """Requests to one model on one server."""

    def __init__(  # noqa: PLR0913 - the options of the commands
        self,
        *,
        url: str,
        model_name: str | None,
        api_key: str | None,
        stats: bool,
        temperature: float | None,
        max_tokens: int | None,
    ) -> None:
        self._client = ApiClient(url, api_key or env.OPENAI_API_KEY.get() or env.VLLM_API_KEY.get())
        self._stats = stats
        wanted = {"temperature": temperature, "max_tokens": max_tokens}
        self._parameters = {name: value for name, value in wanted.items() if value is not None}
        self.model = model_name or self._client.first_model()

    def ask(self, path: str, body: dict[str, Any], answer: Answer) -> None:
        """Sends one request and prints the answer."""
        with closing(self._client.stream(path, {"model": self.model, **self._parameters, **body})) as pieces:
            answer.write(pieces)
        if self._stats:
            click.echo(answer.stats(), err=True)

    def ask_interruptibly(self, path: str, body: dict[str, Any]) -> Answer | None:
        """Like `ask`, but Ctrl-C only ends the answer, and an error is printed; then returns None."""
        answer = Answer()
        try:
            self.ask(path, body, answer)
        except KeyboardInterrupt:
            click.echo("(stopped)", err=True)
        except ConnectionFailedError as err:
            err.show()
            return None
        return answer


def input_lines(greeting: str) -> Iterator[str]:
    """The user's non-empty lines until /exit or the end of input; Ctrl-C raises KeyboardInterrupt."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        click.echo(greeting)
    while True:
        try:
            line = input("> " if is_terminal else "").strip()
        except EOFError:
            return
        if line == EXIT:
            return
        if line:
            yield line
