"""Shared by `chat` and `complete`: options, input lines, and the display of one answer."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from typing import Any, Final, TypeVar

import click

from startup.logs.setup import escape_controls
from vllm_cli.client.server import Piece, server_options, take_server
from vllm_cli.errors import ConnectionFailedError

with suppress(ImportError):  # some Pythons are built without it, then input lines cannot be edited
    import readline  # noqa: F401


class Answer:
    """One streamed answer; `text` is the part received so far."""

    def __init__(self) -> None:
        self.text = ""
        self._num_tokens = 0
        self._start_ns = time.perf_counter_ns()
        self._first_ns: int | None = None
        self._end_ns: int | None = None

    def write(self, pieces: Iterable[Piece]) -> None:
        """Prints piece by piece; ends the line even after Ctrl-C or an error.

        Control characters are escaped on a terminal; files and pipes get the text unchanged.
        """
        is_terminal = sys.stdout.isatty()
        try:
            for piece in pieces:
                self._num_tokens = piece.num_tokens or self._num_tokens
                if piece.text:
                    self._first_ns = self._first_ns or time.perf_counter_ns()
                    self.text += piece.text
                    click.echo(escape_controls(piece.text) if is_terminal else piece.text, nl=False)
        finally:
            self._end_ns = time.perf_counter_ns()
            if self.text:
                click.echo()

    def stats(self) -> str:
        """Time to first token and tokens per second, of the whole request."""
        if self._first_ns is None or self._end_ns is None:
            return "No token was received."
        total_s = (self._end_ns - self._start_ns) / 1e9
        ttft_ms = (self._first_ns - self._start_ns) / 1e6
        rate = self._num_tokens / total_s
        return f"TTFT: {ttft_ms:.2f} ms\nTPS: {rate:.2f} tokens/s ({self._num_tokens} tokens in {total_s:.2f} s)"


F = TypeVar("F", bound=Callable[..., Any])

CLEAR: Final = "/clear"
EXIT: Final = "/exit"


def dialogue_options(command: F) -> F:
    """The options for server, model and sampling; the model is named as in `vllm chat`."""
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
        click.option(
            *("--model-name", "--model"), help="Model that answers; the first that the server lists if not given."
        ),
        server_options,
    ):
        command = option(command)
    return command


class Dialogue:
    """Requests to one model on one server."""

    def __init__(self, options: dict[str, Any]) -> None:
        """Takes the options that `dialogue_options` adds."""
        self._server = take_server(options)
        self._stats = options["stats"]
        wanted = {name: options[name] for name in ("temperature", "max_tokens")}
        self._parameters = {name: value for name, value in wanted.items() if value is not None}
        self.model = options["model_name"] or self._server.first_model()

    def ask(self, path: str, body: dict[str, Any], answer: Answer) -> None:
        """Sends one request and prints the answer."""
        with closing(self._server.stream(path, {"model": self.model, **self._parameters, **body})) as pieces:
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
