"""`vllm-cli chat`: a user's requests to a model on a running server."""

import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from typing import Any, Final

import click

from base.exit_codes import OK
from base.machine.standard_streams import is_read
from startup.logs.formatters import escape_controls
from vllm_cli.client.server import Piece, ServerClient, server_options, take_server, utf8_text
from vllm_cli.commands.of_vllm import vllms_own
from vllm_cli.errors import ConnectionFailedError, NotUtf8Error

with suppress(ImportError):  # some Pythons are built without readline; then input cannot be edited
    import readline  # noqa: F401

_CHAT: Final = "/v1/chat/completions"
_CLEAR: Final = "/clear"
_NO_RESPONSE: Final = 1
_SLASH_WORD: Final = re.compile(r"/[\w?]*")  # no path such as /etc/hosts
_EXITS: Final = ("/exit", "/bye")
_HELP: Final = "/help"
_PROMPT: Final = "> "

Message = dict[str, str]


@click.command(epilog=vllms_own("chat"))
@server_options
@click.option(*("--model-name", "--model"), help="Model that answers, by default the first that the server lists.")
@click.option("--stats", is_flag=True, help="Show each answer's time to first token and tokens per second.")
@click.option(
    "--temperature", type=click.FloatRange(0, 2), help="Sampling temperature. By default, the server decides."
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), help="Most tokens to generate. By default, the server decides."
)
@click.option("--system-prompt", "--system", help="System message before the first message.")
@click.option("-q", "--quick", metavar="MESSAGE", help="Send one message, print the answer and exit.")
def chat(**options: Any) -> int:
    """Chat with a model on a running server.

    /clear starts a new conversation, /exit and /bye exit, /help lists these words. Other words after a slash
    are not sent. During an answer, Ctrl-C stops the answer. Otherwise, Ctrl-C exits.

    \b
    Examples:
      vllm-cli chat
      vllm-cli chat --temperature 0 --quick "What is the capital of France?"
      vllm-cli chat --temperature 0 --system "You are a pirate." --quick "Who are you?"
      vllm-cli chat --url unix:/run/vllm.sock --temperature 0 --quick "Hi" --stats

    Exit codes: 0 answered, or /exit; 1 no response, or the request was rejected; 2 usage; 130 Ctrl-C.
    """
    return chat_with(take_server(options), **options)


def chat_with(server: ServerClient, *, system_prompt: str | None, quick: str | None, **options: Any) -> int:
    """Sends the message `quick`, or converses with the user. Returns the exit code."""
    messages = [_message("system", system_prompt)] if system_prompt else []
    if quick is not None:
        messages.append(_message("user", quick))
    dialogue = _Dialogue(server, options)
    if quick is None:
        _converse(dialogue, messages)
    else:
        dialogue.ask(messages, _Answer())
    return dialogue.exit_code


def _converse(dialogue: "_Dialogue", beginning: list[Message]) -> None:
    history = list(beginning)
    for line in _input_lines(
        f"Chatting with {dialogue.model}. {_CLEAR} starts a new chat, {_EXITS[0]} exits, {_HELP} shows this, "
        "Ctrl-C stops an answer."
    ):
        if line == _CLEAR:
            history = list(beginning)
            click.echo("New chat.", err=True)
        elif _SLASH_WORD.fullmatch(word := line.partition(" ")[0]):
            dialogue.has_failed = True
            known = ", ".join((_CLEAR, *_EXITS, _HELP))
            click.echo(f"Error: The message was not sent: the chat's words are {known}, not {word}.", err=True)
        else:
            answer = dialogue.ask_interruptibly(history, line)
            if answer and answer.text:
                history += [_message("user", line), _message("assistant", answer.text)]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": utf8_text(content)}


class _Dialogue:
    """Sends requests to one model on one server."""

    def __init__(self, server: ServerClient, options: dict[str, Any]) -> None:
        """Takes the options of sampling, and `model_name`."""
        self._server = server
        self._stats = options.get("stats", False)
        wanted = {name: options.get(name) for name in ("temperature", "max_tokens")}
        self._parameters = {name: value for name, value in wanted.items() if value is not None}
        self.model = utf8_text(options["model_name"] or "") or self._server.first_model()
        self.has_failed = False

    @property
    def exit_code(self) -> int:
        """A person has seen that a request failed. A script that reads from a pipe needs the exit code."""
        return _NO_RESPONSE if self.has_failed and not sys.stdin.isatty() else OK

    def ask(self, messages: list[Message], answer: "_Answer") -> None:
        body = {"model": self.model, **self._parameters, "messages": messages}
        with closing(self._server.stream(_CHAT, body)) as pieces:
            answer.write(pieces)
        if self._stats:
            click.echo(answer.stats(), err=True)

    def ask_interruptibly(self, history: list[Message], line: str) -> "_Answer | None":
        """Like `ask`, but Ctrl-C ends only the answer. If the request fails, prints why and returns None."""
        answer = _Answer()
        try:
            self.ask([*history, _message("user", line)], answer)
        except KeyboardInterrupt:
            click.echo("(stopped)", err=True)
        except (ConnectionFailedError, NotUtf8Error) as err:
            self.has_failed = True
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
    """Yields the user's non-empty lines until /exit or the end of the input. /help repeats the greeting.

    What is written for the user goes to standard error, unless standard output is the terminal.
    """
    is_terminal, is_redirected = sys.stdin.isatty(), not sys.stdout.isatty()
    if sys.stdin.errors == "strict":  # a line that is not UTF-8 is told, and not sent
        sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    if is_terminal:
        click.echo(greeting, err=True)
    while is_read(sys.stdout):
        try:
            if is_terminal and is_redirected:
                click.echo(_PROMPT, nl=False, err=True)
            line = input("" if is_redirected or not is_terminal else _PROMPT).strip()
        except EOFError:
            return
        if line in _EXITS:
            return
        if line == _HELP:
            click.echo(greeting, err=is_terminal)
        elif line:
            yield line
