"""`vllm-cli load` and `vllm-cli unload`: start and stop one model of a router (`serve --models`)."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar
from urllib.parse import quote

import click

from base.status_page.page import DATA_PATH
from startup.logs.setup import escape_controls
from vllm_cli.client.reporter import Reporter
from vllm_cli.client.server import Server, server_options, take_server
from vllm_cli.client.server_address import ServerAddress
from vllm_cli.client.waiting import poll_readiness
from vllm_cli.errors import ConnectionFailedError

F = TypeVar("F", bound=Callable[..., Any])
Verb = Literal["load", "unload"]
Ending = Literal["ready", "stopped", "failed", "timed out"]

EXIT_CODES: Final[dict[Ending, int]] = {"ready": 0, "stopped": 0, "failed": 1, "timed out": 4}

_DONE: Final[dict[Verb, Ending]] = {"load": "ready", "unload": "stopped"}
_POLL_S: Final = 0.2
_POLL_TIMEOUT_S: Final = 2.0


def _router_options(command: F) -> F:
    for option in (
        click.option("-q", "--quiet", "is_quiet", is_flag=True, help="Print nothing; only the exit code counts."),
        click.option("--json", "is_json", is_flag=True, help="Print the outcome as JSON."),
        click.option(
            *("--timeout", "timeout_s"),
            type=click.FloatRange(0, min_open=True),
            default=600,
            show_default=True,
            metavar="SECONDS",
            help="Longest wait.",
        ),
        server_options,
        click.argument("model"),
    ):
        command = option(command)
    return command


@click.command("load")
@_router_options
def load(*, model: str, **options: Any) -> int:
    """Start MODEL on a running router (`serve --models`, `serve A B`), and wait until it is ready.

    Other models are stopped for it where a request for MODEL would stop them. Ctrl-C ends the wait.

    \b
    Examples:
      vllm-cli load qwen
      vllm-cli load qwen --port 8001 --timeout 60 --json

    Exit codes: 0 ready; 1 no such model, it failed, has no room, or no router answers; 2 usage; 4 timed out.
    """
    return _run("load", model, options)


@click.command("unload")
@_router_options
def unload(*, model: str, **options: Any) -> int:
    """Stop MODEL on a running router after its running requests, and wait until its memory is free.

    The next request for MODEL starts it again.

    \b
    Examples:
      vllm-cli unload qwen
      vllm-cli unload qwen --url unix:/run/vllm.sock

    Exit codes: 0 stopped; 1 no such model, or no router answers; 2 usage; 4 timed out.
    """
    return _run("unload", model, options)


def _run(verb: Verb, model: str, options: dict[str, Any]) -> int:
    server = take_server(options)
    request = _Request(server, verb, model)
    with closing(Reporter(is_quiet=options["is_quiet"])) as reporter:
        outcome = _follow(request, server.address, reporter, options["timeout_s"])
    if options["is_json"]:
        click.echo(json.dumps(outcome.to_dict()))
    if not options["is_quiet"]:
        click.echo(outcome.describe(), err=True)
    return EXIT_CODES[outcome.ending]


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """How the wait ended."""

    model: str
    ending: Ending
    took_s: float
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The output of `--json`."""
        return {
            "model": self.model,
            "status": self.ending,
            "took_s": round(self.took_s, 3),
            "reason": self.reason or None,
        }

    def describe(self) -> str:
        """One line for people."""
        model = escape_controls(self.model)
        match self.ending:
            case "failed":
                return f"Error: {self.reason}"
            case "timed out":
                return f"Error: the request for {model} was not answered after {self.took_s:.3g} s"
            case "ready":
                return f"{model} is ready after {self.took_s:.1f} s"
            case "stopped":
                return f"{model} has stopped after {self.took_s:.1f} s"


class _Request:
    """One POST in a thread of its own; it is answered once the model has started or stopped."""

    def __init__(self, server: Server, verb: Verb, model: str) -> None:
        self.verb = verb
        self.model = model
        self.error: ConnectionFailedError | None = None
        self._server = server
        self._thread = threading.Thread(target=self._send, name=f"{verb}-model", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Whether the answer has come within this time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _send(self) -> None:
        try:
            self._server.ask("POST", f"/v1/models/{quote(self.model, safe='/:@')}/{self.verb}")
        except ConnectionFailedError as err:
            self.error = err


def _follow(request: _Request, address: ServerAddress, reporter: Reporter, timeout_s: float) -> _Outcome:
    begin_s = time.monotonic()
    while True:
        waited_s = time.monotonic() - begin_s
        if request.wait(min(_POLL_S, max(timeout_s - waited_s, 0.0))):
            break
        waited_s = time.monotonic() - begin_s
        if waited_s >= timeout_s:
            return _Outcome(model=request.model, ending="timed out", took_s=waited_s)
        if reporter.line.is_on:
            state = _describe_state(request.model, address)
            reporter.update(f"{waited_s:5.1f} s  {escape_controls(request.model)}: {state}")
    took_s = time.monotonic() - begin_s
    if request.error is None:
        return _Outcome(model=request.model, ending=_DONE[request.verb], took_s=took_s)
    return _Outcome(model=request.model, ending="failed", took_s=took_s, reason=_explain(request.error, address))


def _describe_state(model: str, address: ServerAddress) -> str:
    """What the router says about a model that is not ready."""
    polled = poll_readiness(address, f"/readyz?model={quote(model, safe='')}", timeout_s=_POLL_TIMEOUT_S)
    state = polled.phase.replace("_", " ") if polled.phase else polled.status or polled.reason
    return escape_controls(state) + polled.describe_rest()


def _explain(error: ConnectionFailedError, address: ServerAddress) -> str:
    """The error; a server that has one model answers 404 or 405 to every model."""
    if error.status not in (404, 405) or _is_router(address):
        return error.message
    return f"The server at {address} has one model. Only `serve` with several models loads and unloads them."


def _is_router(address: ServerAddress) -> bool:
    """Whether it has several models; a server that does not tell counts as one."""
    with suppress(ConnectionFailedError):
        return "models" in Server(address).ask("GET", DATA_PATH)
    return True
