"""`vllm-cli load`, `sleep` and `unload`: start, put to sleep or stop one model of a router."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any, Final, Literal
from urllib.parse import quote

import click

from base.status_page.page import DATA_PATH
from startup.logs.formatters import escape_controls
from vllm_cli.client.running_servers import parse_models
from vllm_cli.client.server import ServerClient, server_options, take_server, utf8_text
from vllm_cli.client.server_address import ServerAddress
from vllm_cli.errors import ConnectionFailedError
from vllm_cli.terminal import SECONDS, Reporter, options, printable

Verb = Literal["load", "sleep", "unload"]
Ending = Literal["ready", "asleep", "stopped", "failed", "timed out"]

EXIT_CODES: Final[dict[Ending, int]] = {"ready": 0, "asleep": 0, "stopped": 0, "failed": 1, "timed out": 4}

_POLL_S: Final = 1.0
_ANSWER_S: Final = 1.0
"""The longest wait for the model's state."""
_HEARTBEAT_S: Final = 10.0
_DONE: Final[dict[Verb, Ending]] = {"load": "ready", "sleep": "asleep", "unload": "stopped"}
_TEXTS: Final[dict[Ending, str]] = {"ready": "is ready", "asleep": "sleeps", "stopped": "has stopped"}


_router_options: Final = options(
    click.argument("model"),
    server_options,
    click.option("--timeout", "timeout_s", type=SECONDS, default=600, show_default=True, help="Longest wait."),
    click.option("--json", "is_json", is_flag=True, help="Print the outcome as JSON."),
    click.option("-q", "--quiet", "is_quiet", is_flag=True, help="Print nothing."),
)


@click.command("load")
@_router_options
def load(*, model: str, **options: Any) -> int:
    """Start MODEL on a running router (`serve --models`, `serve A B`), and wait until it is ready.

    The router stops the same models that it stops for a request for MODEL. Ctrl-C ends the wait.

    \b
    Examples:
      vllm-cli load qwen
      vllm-cli load qwen --port 8001 --timeout 60 --json

    Exit codes: 0 ready; 1 unknown model, failed, no room, or no router answers; 2 usage; 4 timed out.
    """
    return _run("load", model, options)


@click.command("sleep")
@_router_options
def sleep(*, model: str, **options: Any) -> int:
    """Put MODEL on a running router to sleep after its running requests. Sleep frees the GPU's memory.

    The next request for MODEL, or `vllm-cli load`, wakes it. A model of vLLM can sleep if the router runs
    with --on-swap sleep or --idle-sleep.

    \b
    Examples:
      vllm-cli sleep qwen
      vllm-cli sleep qwen --port 8001 --json

    Exit codes: 0 asleep; 1 no such model, MODEL cannot sleep, or no router answers; 2 usage; 4 timed out.
    """
    return _run("sleep", model, options)


@click.command("unload")
@_router_options
def unload(*, model: str, **options: Any) -> int:
    """Stop MODEL on a running router after its running requests, and wait until the model's memory is free.

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
    model = utf8_text(model)
    begin_s = time.monotonic()
    with closing(Reporter(is_quiet=options["is_quiet"], interval_s=_HEARTBEAT_S)) as reporter:
        timeout_s = options["timeout_s"]
        ending, reason = _await(lambda: _send(server, verb, model, timeout_s), server, model, reporter)
    took_s = time.monotonic() - begin_s
    if ending == "timed out":
        reason = f"the request for {escape_controls(model)} was not answered after {took_s:.3g} s"
    if options["is_json"]:
        outcome = {"model": model, "status": ending, "took_s": round(took_s, 3), "reason": reason or None}
        click.echo(json.dumps(outcome))
    if not options["is_quiet"]:
        done = f"{escape_controls(model)} {_TEXTS.get(ending)} after {took_s:.1f} s"
        click.echo(f"Error: {reason}" if reason else done, err=True)
    return EXIT_CODES[ending]


def _await(
    send: Callable[[], tuple[Ending, str]], server: ServerClient, model: str, reporter: Reporter
) -> tuple[Ending, str]:
    """Sends the request in a thread, and shows the model's state meanwhile. Returns the outcome."""
    outcomes: list[tuple[Ending, str]] = []
    sending = threading.Thread(target=lambda: outcomes.append(send()), daemon=True, name="request")
    begin_s = time.monotonic()
    sending.start()
    sending.join(_POLL_S)
    while sending.is_alive():
        if state := _describe_state(server, model):
            reporter.update(f"{time.monotonic() - begin_s:5.1f} s  {escape_controls(model)} is {state}", state)
        sending.join(_POLL_S)
    return outcomes[0]


def _describe_state(server: ServerClient, model: str) -> str:
    """The model's state, phase and number of requests. Empty if the router does not answer."""
    with suppress(ConnectionFailedError):
        for each in parse_models(server.ask("GET", DATA_PATH, timeout_s=_ANSWER_S)) or ():
            if model in (each.model, *each.aliases):
                phase = f", {each.phase}" if each.phase else ""
                return f"{each.state}{phase}" + f", {each.num_running} requests run" * bool(each.num_running)
    return ""


def _send(server: ServerClient, verb: Verb, model: str, timeout_s: float) -> tuple[Ending, str]:
    """Sends the request. Returns the state that the model reached, or an error's ending and reason."""
    try:
        answer = server.ask("POST", f"/v1/models/{quote(model, safe='/:@')}/{verb}", timeout_s=timeout_s)
    except ConnectionFailedError as err:
        if isinstance(err.__cause__, TimeoutError):
            return "timed out", ""
        return "failed", _explain(err, server.address)
    state = answer.get("status", _DONE[verb])
    known = [each for each in _TEXTS if each == state]
    return (known[0], "") if known else ("failed", f"the router reports the state {printable([repr(state)])[0][:80]}")


def _explain(error: ConnectionFailedError, address: ServerAddress) -> str:
    """The message for an error. A server with one model answers 404 or 405 to these requests."""
    if error.status not in (404, 405) or _is_router(address):
        return error.message
    return f"The server at {address} has one model. Only `serve` with several models loads and unloads them."


def _is_router(address: ServerAddress) -> bool:
    """Whether the server is a router. A server that does not answer counts as one."""
    with suppress(ConnectionFailedError):
        return "models" in ServerClient(address).ask("GET", DATA_PATH)
    return True
