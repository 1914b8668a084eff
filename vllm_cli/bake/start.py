"""One start of the server while an image is built: it answers a request and is stopped."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPException
from types import TracebackType
from typing import Any, Final, Self

import click

from startup.errors import StartupError
from startup.timeline.live_line import LiveLine
from vllm_cli.client.waiting import Readiness
from vllm_cli.private_server import PrivateServer, start_private_server
from vllm_cli.supervised_command import CommandEndedError

_POLL_S: Final = 0.1
_REQUEST_TIMEOUT_S: Final = 300.0
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


class BuildStart:
    """The server of a build; created by `build_start`."""

    def __init__(self, server: PrivateServer) -> None:
        self._server = server
        self._command = server.command

    @property
    def pid(self) -> int:
        """A process whose descendants are all processes of the server."""
        return self._command.root_pid

    def wait_ready(self, timeout_s: float, on_poll: Callable[[Readiness, float], None]) -> None:
        """Raises StartupError with the end of the server's log if it does not become ready."""
        result = self._server.wait_ready(timeout_s, on_poll)
        if result.ending != "ready":
            reason = "not ready in time" if result.ending == "timed out" else result.last.reason
            raise StartupError(f"the start failed ({reason})\n{self._command.log_tail}")

    def ask(self) -> str:
        """Has one request answered; returns the endpoint's path."""
        refusals = []
        try:
            model = json.loads(self._send("GET", "/v1/models")[1])["data"][0]["id"]
            for path, body in _REQUESTS:
                status, answer = self._send("POST", path, {"model": model, **body})
                if status == 200:
                    return path
                refusals.append(f"  {path}: {status} {answer[:200].decode(errors='replace')}")
        except (OSError, HTTPException, ValueError, LookupError) as err:
            raise StartupError(f"the server does not answer ({err})\n{self._command.log_tail}") from err
        raise StartupError("no endpoint answers:\n" + "\n".join(refusals))

    def wait_for(self, is_saved: Callable[[], bool], timeout_s: float) -> None:
        """Waits for what the server saves after it has become ready."""
        deadline = time.monotonic() + timeout_s
        while not is_saved() and time.monotonic() < deadline:
            try:
                self._command.ensure_alive()
            except CommandEndedError as err:
                raise StartupError(err.message) from err
            time.sleep(_POLL_S)

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        with closing(self._server.address.connect(_REQUEST_TIMEOUT_S)) as connection:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json", "Connection": "close"})
            response = connection.getresponse()
            return response.status, response.read()


@contextmanager
def build_start(words: Sequence[str], environment: Mapping[str, str]) -> Iterator[BuildStart]:
    """Starts `serve` with the words and variables; stops all its processes at the end of the block."""
    with start_private_server(words, environment) as server:
        yield BuildStart(server)


class BakeProgress:
    """Writes to standard error; a context manager that erases its last line."""

    def __init__(self) -> None:
        self._live = LiveLine(sys.stderr)
        self._last = ""

    def show(self, readiness: Readiness, waited_s: float) -> None:
        """The state of the start."""
        phase = (readiness.phase or "starting").replace("_", " ")
        if self._live.is_on:
            self._live.show(f"{waited_s:6.1f} s  {phase}")
        else:
            self.step(phase, waited_s)

    def step(self, text: str, waited_s: float | None = None) -> None:
        """A line of its own; repeated lines are left out."""
        if text != self._last:
            self._last = text
            self._live.clear()
            click.echo(text if waited_s is None else f"{waited_s:6.1f} s  {text}", err=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.close()
