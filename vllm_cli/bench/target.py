"""Measured servers: a benchmark starts them, waits for their completions, freezes and stops them."""

import re
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

import click

from base.exit_codes import START_FAILED
from base.machine.server_ports import find_free_port, list_server_ports
from envs.redaction import hide_in_command
from vllm_cli.client.server import ServerClient, amount, member
from vllm_cli.client.server_address import parse_url
from vllm_cli.errors import ConnectionFailedError
from vllm_cli.supervised_command import SupervisedCommand

T = TypeVar("T")

_POLL_S: Final = 0.02
_ANSWER_S: Final = 5.0
_PROMPT: Final = "The capital of France is"
_MAX_TOKENS: Final = 8
"""The first token may be a part of a character, which has no text before its last token."""


@dataclass(frozen=True, kw_only=True)
class TargetSpec:
    """A server to measure."""

    name: str
    command: str
    """A command as for a shell. A free port replaces `{port}`, or is appended as `--port N`."""
    model: str | None = None
    """The name of the model to request. None means the first model in the server's list."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """The servers to measure, and how completions are requested."""

    targets: tuple[TargetSpec, ...]
    """The first target is side A, with which the others are compared."""
    num_rounds: int
    endpoint: str = "completions"
    """`completions` or `chat`."""
    api_key: str | None = None
    ready_timeout_s: float = 600.0

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.endpoint == "chat" else "/v1/completions"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as fields of the result file, without commands and keys."""
        return {name: value for name, value in asdict(self).items() if name not in ("targets", "api_key")}


class TargetStartError(click.ClickException):
    """The server did not start, or rejects the simplest completion."""

    exit_code = START_FAILED


class Target(SupervisedCommand):
    """A measured server."""

    base_url: str
    """The address without `/v1`, from `start` on."""

    def __init__(self, spec: TargetSpec, environment: Mapping[str, str] | None = None) -> None:
        """`environment`: additional variables."""
        super().__init__(environment)
        self.spec = spec

    def start(self) -> None:
        """Starts the command on a free port if it does not run. Returns before the server is ready."""
        if self._supervisor is None:
            port = find_free_port(list_server_ports())
            self.base_url = f"http://127.0.0.1:{port}"
            self.run(_server_arguments(self.spec.command, port))


def describe(spec: TargetSpec) -> str:
    """The command, without secrets."""
    return hide_in_command(spec.command)


def _server_arguments(command: str, port: int) -> list[str]:
    arguments = shlex.split(command)
    if any("{port}" in argument for argument in arguments):
        arguments = [argument.replace("{port}", str(port)) for argument in arguments]
    else:
        arguments += ["--port", str(port)]
    return ["env", *arguments] if re.match(r"[A-Za-z_]\w*=", arguments[0]) else arguments


@dataclass(frozen=True, kw_only=True)
class ReadyServer:
    """A server that has answered a completion, and how completions are requested from it."""

    base_url: str
    path: str
    """`/v1/completions` or `/v1/chat/completions`."""
    model: str
    api_key: str | None
    version: str | None = None
    """The server's answer to `/version`. None if the server has no such route."""

    @property
    def _client(self) -> ServerClient:
        return ServerClient(parse_url(self.base_url), self.api_key)

    def find_first_text(self) -> int | None:
        """Sends a greedy request and reads its answer to the end. Without text, raises ConnectionFailedError.

        Returns when the first text arrived, on the monotonic clock. None for an empty answer. How the stream
        ends does not matter: `transformers serve` sends no `[DONE]`.
        """
        first_ns: int | None = None
        try:
            with closing(self._client.stream(self.path, self._body())) as pieces:
                for piece in pieces:
                    if first_ns is None and piece.text:
                        first_ns = time.monotonic_ns()
        except ConnectionFailedError:
            if first_ns is None:
                raise
        return first_ns

    def find_version(self) -> str | None:
        with suppress(ConnectionFailedError):
            return member(self._client.ask("GET", "/version", timeout_s=_ANSWER_S), "version", str)
        return None

    def ask_spans(self) -> dict[str, float]:
        """`process:span` -> its end in seconds, from `/startupz`. Empty if the server has no such route."""
        with suppress(ConnectionFailedError):
            report = self._client.ask("GET", "/startupz", timeout_s=_ANSWER_S)
            spans = [each for each in member(report, "spans", list) or () if isinstance(each, dict)]
            ends = {f"{each.get('process')}:{each.get('name')}": amount(each.get("end_s")) for each in spans}
            return {name: end_s for name, end_s in ends.items() if end_s is not None}
        return {}

    def _body(self) -> dict[str, Any]:
        is_chat = self.path.endswith("/chat/completions")
        content = {"messages": [{"role": "user", "content": _PROMPT}]} if is_chat else {"prompt": _PROMPT}
        return {"model": self.model, "max_tokens": _MAX_TOKENS, "temperature": 0, **content}


def wait_until_ready(target: Target, config: BenchConfig) -> ReadyServer:
    """Requests a short completion until the server answers it. Otherwise raises TargetStartError."""
    with time_limit(target, config):
        return ask_until_answered(partial(_find_server, target, config), target)


@contextmanager
def time_limit(target: Target, config: BenchConfig) -> Iterator[None]:
    """Raises TargetStartError within the block after `ready_timeout_s`, even during a request."""

    def end(*_: object) -> None:
        raise TargetStartError(f"{target.spec.name} was not ready after {config.ready_timeout_s:g} s")

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, config.ready_timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def ask_until_answered(ask: Callable[[], T], target: Target) -> T:
    """Calls a function. Calls it again after 5xx or no response, while the server runs.

    Raises:
        TargetStartError: the server rejects the request, so that a retry is useless.
    """
    while True:
        try:
            return ask()
        except ConnectionFailedError as error:
            if error.status is not None and error.status < 500:
                text = f"{error.message} (--request-model and --api-key change the request)"
                raise TargetStartError(text) from error
        target.ensure_alive()
        time.sleep(_POLL_S)


def _find_server(target: Target, config: BenchConfig) -> ReadyServer:
    """Requests a completion. Without a model in the target, the server's first model answers."""
    model = target.spec.model or ServerClient(parse_url(target.base_url), config.api_key).first_model()
    server = ReadyServer(base_url=target.base_url, path=config.path, model=model, api_key=config.api_key)
    server.find_first_text()
    return replace(server, version=server.find_version())
