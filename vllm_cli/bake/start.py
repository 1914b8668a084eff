"""One start of the server while an image is built: it answers a request and is stopped."""

import time
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Any, Final

from startup.errors import StartupError
from vllm_cli.client.reporter import Reporter
from vllm_cli.client.server import Server
from vllm_cli.client.waiting import Readiness
from vllm_cli.errors import ConnectionFailedError
from vllm_cli.private_server import PrivateServer
from vllm_cli.supervised_command import CommandEndedError

_POLL_S: Final = 0.1
_REQUEST_TIMEOUT_S: Final = 300.0
_SAVED_TIMEOUT_S: Final = 60.0
"""Time from readiness until a server has saved what it has recorded."""
_PROMPT: Final = "The capital of France is"
_REQUESTS: Final[tuple[tuple[str, Mapping[str, Any]], ...]] = (
    ("/v1/completions", {"prompt": _PROMPT, "max_tokens": 4}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": _PROMPT}], "max_tokens": 4}),
    ("/v1/embeddings", {"input": _PROMPT}),
    ("/pooling", {"input": _PROMPT}),
    ("/classify", {"input": _PROMPT}),
    ("/score", {"text_1": _PROMPT, "text_2": _PROMPT}),
)
"""The first endpoint that the model has is asked."""


def wait_ready(server: PrivateServer, timeout_s: float, reporter: Reporter) -> None:
    """Raises StartupError with the end of the server's log if it does not become ready."""

    def show(polled: Readiness, waited_s: float) -> None:
        phase = (polled.phase or "starting").replace("_", " ")
        reporter.update(f"{waited_s:6.1f} s  {phase}", phase)

    result = server.wait_ready(timeout_s, show)
    if result.ending != "ready":
        reason = "not ready in time" if result.ending == "timed out" else result.last.reason
        raise StartupError(f"the start failed ({reason})\n{server.command.log_tail}")


def ask(server: PrivateServer) -> str:
    """Has one request answered; returns the endpoint's path."""
    client = Server(server.address)
    refusals = []
    try:
        model = client.first_model()
        for path, body in _REQUESTS:
            answer = client.request("POST", path, {"model": model, **body}, timeout_s=_REQUEST_TIMEOUT_S)
            if answer.status == 200:
                return path
            refusals.append(f"  {path}: {answer.status} {answer.content[:200].decode(errors='replace')}")
    except (OSError, HTTPException, ConnectionFailedError) as err:
        raise StartupError(f"the server does not answer ({err})\n{server.command.log_tail}") from err
    raise StartupError("no endpoint answers:\n" + "\n".join(refusals))


def wait_saved(server: PrivateServer, is_saved: Callable[[], bool]) -> None:
    """Waits for what the server saves after it has become ready."""
    deadline = time.monotonic() + _SAVED_TIMEOUT_S
    while not is_saved() and time.monotonic() < deadline:
        try:
            server.command.ensure_alive()
        except CommandEndedError as err:
            raise StartupError(err.message) from err
        time.sleep(_POLL_S)
