"""One start of the server while an image is built: it answers a request and is stopped."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from startup.errors import StartupError
from vllm_cli.bench.errors import TargetDiedError
from vllm_cli.bench.supervised_command import SupervisedCommand
from vllm_cli.client.readiness import Readiness
from vllm_cli.client.server_address import ServerAddress
from vllm_cli.client.waiting import WaitOptions, wait_for_server
from vllm_cli.serve.engine_choice import keyless_flags

_SOCKET: Final = "bake.sock"
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
    """A running server; created by `build_start`."""

    def __init__(self, command: SupervisedCommand, address: ServerAddress) -> None:
        self._command = command
        self._address = address

    @property
    def pid(self) -> int:
        """A process whose descendants are all processes of the server."""
        return self._command.root_pid

    def wait_ready(self, timeout_s: float, on_poll: Callable[[Readiness, float], None]) -> None:
        """Raises StartupError with the end of the server's log if it does not become ready."""
        options = WaitOptions(
            address=self._address,
            path="/health",
            timeout_s=timeout_s,
            interval_s=_POLL_S,
            pid=self._command.root_pid,
        )
        result = wait_for_server(options, on_poll)
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
            except TargetDiedError as err:
                raise StartupError(err.message) from err
            time.sleep(_POLL_S)

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        with closing(self._address.connect(_REQUEST_TIMEOUT_S)) as connection:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json", "Connection": "close"})
            response = connection.getresponse()
            return response.status, response.read()


@contextmanager
def build_start(words: Sequence[str], environment: Mapping[str, str]) -> Iterator[BuildStart]:
    """Starts `serve` with the words and variables; stops all its processes at the end of the block."""
    with TemporaryDirectory(prefix="vllm-cli-bake-") as folder, closing(SupervisedCommand(environment)) as command:
        socket = Path(folder, _SOCKET)
        model = words[:1] if words and not words[0].startswith("-") else ()  # vLLM's first word
        # Then the flag: a list flag among the user's takes every word that follows.
        flags = ("--uds", str(socket), *keyless_flags(words), *words[len(model) :])
        command.run([sys.executable, "-m", "vllm_cli", "serve", *model, *flags])
        yield BuildStart(command, ServerAddress(uds=str(socket)))
