"""`vllm-cli chat` and `vllm-cli complete`: a user's requests to a model on a running server."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from typing import Any, Final

import click

from base.exit_codes import OK
from startup.logs.formatters import escape_controls
from vllm_cli.client.server import Piece, Server, server_options, take_server
from vllm_cli.commands.of_vllm import vllms_own
from vllm_cli.errors import ConnectionFailedError
from vllm_cli.terminal import options

with suppress(ImportError):  # some Pythons are built without readline; then input cannot be edited
    import readline  # noqa: F401

_CHAT: Final = "/v1/chat/completions"
_COMPLETIONS: Final = "/v1/completions"
_CLEAR: Final = "/clear"
_NO_RESPONSE: Final = 1
_EXIT: Final = "/exit"
_HELP: Final = "/help"

Message = dict[str, str]


_dialogue_options: Final = options(
    server_options,
    click.option(*("--model-name", "--model"), help="Model that answers, by default the first that the server lists."),
    click.option("--stats", is_flag=True, help="Show each answer's time to first token and tokens per second."),
    click.option(
        "--temperature", type=click.FloatRange(0, 2), help="Sampling temperature. By default, the server decides."
    ),
    click.option(
        "--max-tokens", type=click.IntRange(min=1), help="Most tokens to generate. By default, the server decides."
    ),
)
"""The options for server, model and sampling. The model's option is named as in `vllm chat`."""


@click.command(epilog=vllms_own("chat"))
@_dialogue_options
@click.option("--system-prompt", "--system", help="System message before the first message.")
@click.option("-q", "--quick", metavar="MESSAGE", help="Send one message, print the answer and exit.")
def chat(**options: Any) -> int:
    """Chat with a model on a running server.

    /clear starts a new conversation, /exit exits, /help lists these words. During an answer, Ctrl-C stops
    the answer. Otherwise, Ctrl-C exits.

    \b
    Examples:
      vllm-cli chat
      vllm-cli chat --temperature 0 --quick "What is the capital of France?"
      vllm-cli chat --temperature 0 --system "You are a pirate." --quick "Who are you?"
      vllm-cli chat --url unix:/run/vllm.sock --temperature 0 --quick "Hi" --stats

    Exit codes: 0 answered, or /exit; 1 no response, or the request was rejected; 2 usage; 130 Ctrl-C.
    """
    return chat_with(take_server(options), **options)


def chat_with(server: Server, *, system_prompt: str | None, quick: str | None, **options: Any) -> int:
    """Sends the message `quick`, or converses with the user. Returns the exit code."""
    dialogue = _Dialogue(server, options)
    beginning = [_message("system", system_prompt)] if system_prompt else []
    if quick is None:
        _converse(dialogue, beginning)
    else:
        dialogue.ask(_CHAT, {"messages": [*beginning, _message("user", quick)]}, _Answer())
    return dialogue.exit_code


@click.command(epilog=vllms_own("complete"))
@_dialogue_options
@click.option("-q", "--quick", metavar="PROMPT", help="Complete one prompt, print the text and exit.")
def complete(*, quick: str | None, **options: Any) -> int:
    """Complete a text with a model on a running server.

    /exit exits, /help shows this. While a text is generated, Ctrl-C stops the text. Otherwise, Ctrl-C exits.

    \b
    Examples:
      vllm-cli complete
      vllm-cli complete --max-tokens 32 --temperature 0 --quick "The capital of France is"
      vllm-cli complete --url unix:/run/vllm.sock --temperature 0 --quick "Hi" --stats

    Exit codes: 0 answered, or /exit; 1 no response, or the request was rejected; 2 usage; 130 Ctrl-C.
    """
    dialogue = _Dialogue(take_server(options), options)
    if quick is not None:
        dialogue.ask(_COMPLETIONS, {"prompt": quick}, _Answer())
        return OK
    greeting = f"Completing with {dialogue.model}. {_EXIT} exits, {_HELP} shows this, Ctrl-C stops a text."
    for line in _input_lines(greeting):
        dialogue.ask_interruptibly(_COMPLETIONS, {"prompt": line})
    return dialogue.exit_code


def _converse(dialogue: "_Dialogue", beginning: list[Message]) -> None:
    history = list(beginning)
    for line in _input_lines(
        f"Chatting with {dialogue.model}. {_CLEAR} starts a new chat, {_EXIT} exits, {_HELP} shows this, "
        "Ctrl-C stops an answer."
    ):
        if line == _CLEAR:
            history = list(beginning)
            continue
        question = _message("user", line)
        answer = dialogue.ask_interruptibly(_CHAT, {"messages": [*history, question]})
        if answer and answer.text:
            history += [question, _message("assistant", answer.text)]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


class _Dialogue:
    """Sends requests to one model on one server."""

    def __init__(self, server: Server, options: dict[str, Any]) -> None:
        """Takes the options of sampling, and `model_name`."""
        self._server = server
        self._stats = options.get("stats", False)
        wanted = {name: options.get(name) for name in ("temperature", "max_tokens")}
        self._parameters = {name: value for name, value in wanted.items() if value is not None}
        self.model = options["model_name"] or self._server.first_model()
        self._has_failed = False

    @property
    def exit_code(self) -> int:
        """A person has seen that a request failed. A script that reads from a pipe needs the exit code."""
        return _NO_RESPONSE if self._has_failed and not sys.stdin.isatty() else OK

    def ask(self, path: str, body: dict[str, Any], answer: "_Answer") -> None:
        with closing(self._server.stream(path, {"model": self.model, **self._parameters, **body})) as pieces:
            answer.write(pieces)
        if self._stats:
            click.echo(answer.stats(), err=True)

    def ask_interruptibly(self, path: str, body: dict[str, Any]) -> "_Answer | None":
        """Like `ask`, but Ctrl-C ends only the answer. If the request fails, prints why and returns None."""
        answer = _Answer()
        try:
            self.ask(path, body, answer)
        except KeyboardInterrupt:
            click.echo("(stopped)", err=True)
        except ConnectionFailedError as err:
            self._has_failed = True
            err.show()
            return None
        return answer


class _Answer:
    """One streamed answer. `text` is the part that has been received so far."""

    def __init__(self) -> None:
        self.text = ""
        self._num_tokens = 0
        self._start_ns = time.perf_counter_ns()
        self._first_ns: int | None = None
        self._end_ns: int | None = None

    def write(self, pieces: Iterable[Piece]) -> None:
        """Prints the answer piece by piece. Prints a line end even after Ctrl-C or an error.

        On a terminal, control characters are escaped. Files and pipes get the text unchanged.
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
        """Time to the first token, and tokens per second of the whole request."""
        if self._first_ns is None or self._end_ns is None:
            return "No token was received."
        total_s = (self._end_ns - self._start_ns) / 1e9
        ttft_ms = (self._first_ns - self._start_ns) / 1e6
        rate = self._num_tokens / total_s
        return f"TTFT: {ttft_ms:.2f} ms\nTPS: {rate:.2f} tokens/s ({self._num_tokens} tokens in {total_s:.2f} s)"


def _input_lines(greeting: str) -> Iterator[str]:
    """Yields the user's non-empty lines until /exit or the end of the input. /help repeats the greeting."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        click.echo(greeting)
    while True:
        try:
            line = input("> " if is_terminal else "").strip()
        except EOFError:
            return
        if line == _EXIT:
            return
        if line == _HELP:
            click.echo(greeting)
        elif line:
            yield line
