"""Batch files, and a real HTTP server whose answers a test chooses."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Answer = tuple[int, Any, dict[str, str]]


class BatchServer(ThreadingHTTPServer):
    """Answers each POST with the result of `decide`, and counts requests by prompt."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.decide: Callable[[dict[str, Any]], Answer] = lambda body: ok(body)
        self.asked: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.puts: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.max_at_once = 0
        self.lock = threading.Lock()
        self.num_running = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignores errors: tests kill clients."""


class _Handler(BaseHTTPRequestHandler):
    server: BatchServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.asked[body.get("prompt", "")] += 1
            server.headers.append(dict(self.headers))
            server.paths.append(self.path)
            server.num_running += 1
            server.max_at_once = max(server.max_at_once, server.num_running)
        try:
            status, content, headers = server.decide(body)
        finally:
            with server.lock:
                server.num_running -= 1
        self._send(status, content if isinstance(content, bytes) else json.dumps(content, indent=2).encode(), headers)

    def do_GET(self) -> None:
        self._send(200, self.server.files[self.path], {})

    def do_PUT(self) -> None:
        self.server.puts[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._send(200, b"", {})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Writes no log."""


def ok(body: dict[str, Any]) -> Answer:
    """A completion that repeats the prompt."""
    usage = {"prompt_tokens": 2, "completion_tokens": 3}
    return 200, {"choices": [{"text": body.get("prompt")}], "usage": usage}, {}


def error(status: int, message: str, **headers: str) -> Answer:
    """An error in OpenAI's envelope."""
    return status, {"error": {"message": message, "type": "x", "code": status}}, headers


def request_line(number: int, **changes: Any) -> dict[str, Any]:
    """A completion whose prompt is its custom_id."""
    name = f"request-{number}"
    return {"custom_id": name, "method": "POST", "url": "/v1/completions", "body": {"prompt": name}} | changes


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
