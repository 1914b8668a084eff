"""Fixtures of the command line's tests: a clean environment, parsed configurations, child processes, a server."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

import pytest

from envs.registry import OWN_PREFIX, variables
from startup.config import StartupConfig
from tests.startup.vllm.fake_start import short_folder


@pytest.fixture(autouse=True)
def no_variable_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = [name for name in os.environ if name.startswith(OWN_PREFIX)]
    for name in [*ours, *(variable.name for variable in variables())]:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def parse() -> Callable[..., StartupConfig]:
    """The configuration that `vllm-cli serve WORDS...` would start with."""
    from vllm_cli.commands.serve import serve
    from vllm_cli.serve.command import given_settings
    from vllm_cli.serve.config import build_startup_config

    def parse_words(*words: str) -> StartupConfig:
        with serve.make_context("serve", list(words)) as ctx:
            return build_startup_config(given_settings(ctx))

    return parse_words


@pytest.fixture
def run_cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m vllm_cli WORDS...` in a process of its own."""

    def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vllm_cli", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=200, **options)

    return run


@pytest.fixture
def stand_in() -> Iterator["StandIn"]:
    """A real HTTP server that streams what the test tells it to, as an OpenAI server does."""
    with _running(StandIn()) as server:
        yield server


@pytest.fixture
def stand_in_on_a_socket() -> Iterator["StandIn"]:
    """The same on a UNIX domain socket."""
    with short_folder() as folder, _running(_UnixStandIn(str(folder / "server.sock"))) as server:
        yield server


@contextmanager
def _running(server: "StandIn") -> Iterator["StandIn"]:
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="stand-in")
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class StandIn(ThreadingHTTPServer):
    """Answers requests with the replies that were queued, and remembers what it was asked."""

    daemon_threads = False

    def __init__(self, address: Any = ("127.0.0.1", 0)) -> None:
        super().__init__(address, _Handler)
        self.replies: list[Callable[[_Handler], None]] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.hung_up = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no error here; anything else is shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def will_chat(self, *texts: str) -> None:
        first = {"delta": {"role": "assistant", "content": ""}}
        self._will_stream(first, *({"delta": {"content": text}} for text in texts))

    def will_complete(self, *texts: str) -> None:
        self._will_stream(*({"text": text} for text in texts))

    def will_answer(self, status: int, body: Any) -> None:
        self.replies.append(lambda handler: handler.answer(status, body))

    def will_break_off_after(self, text: str) -> None:
        self.replies.append(lambda handler: handler.stream([{"choices": [{"delta": {"content": text}}]}], ends=False))

    def will_fail_in_the_stream(self, message: str) -> None:
        self.replies.append(lambda handler: handler.stream([{"error": {"message": message}}]))

    def will_go_on_for_ever(self, text: str) -> None:
        self.replies.append(lambda handler: handler.stream_until_hung_up(text))

    def _will_stream(self, *choices: dict[str, Any]) -> None:
        events = [{"choices": [choice]} for choice in choices]
        usage = {"choices": [], "usage": {"completion_tokens": 7}}
        self.replies.append(lambda handler: handler.stream([*events, usage]))


class _UnixStandIn(StandIn):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        """HTTPServer's own would look for a host name."""
        TCPServer.server_bind(self)

    @property
    def url(self) -> str:
        return f"unix:{self.server_address!s}"


class _Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.headers.append(dict(self.headers))
        self.answer(200, {"data": [{"id": "stand-in"}, {"id": "other"}]} if self.path == "/v1/models" else {})

    def do_POST(self) -> None:
        self.server.headers.append(dict(self.headers))
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append({"path": self.path, **body})
        self.server.replies.pop(0)(self)

    def answer(self, status: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, events: list[dict[str, Any]], *, ends: bool = True) -> None:
        self._begin_stream()
        self._send(b": a comment\n\n")
        for event in events:
            self._send(f"data: {json.dumps(event)}\n\n".encode())
        if ends:
            self._send(b"data: [DONE]\n\n")
            self._send(b"")
        else:
            self.close_connection = True

    def stream_until_hung_up(self, text: str) -> None:
        self._begin_stream()
        self.close_connection = True
        event = f"data: {json.dumps({'choices': [{'delta': {'content': text}}]})}\n\n".encode()
        try:
            while not self.server.hung_up.wait(0.01):
                self._send(event)
        except OSError:
            self.server.hung_up.set()

    def _begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _send(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the tests' output is not the place."""
