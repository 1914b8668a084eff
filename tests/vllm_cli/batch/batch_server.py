"""Batch files, and a real HTTP server whose answers a test chooses."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.http_server import LocalServer, QuietHandler

Answer = tuple[int, Any, dict[str, str]]


class BatchServer(LocalServer):
    """Answers each POST with the result of `decide`, and counts requests by prompt."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.decide: Callable[[dict[str, Any]], Answer] = lambda body: ok(body)
        self.asked: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.puts: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.max_at_once = 0
        self.lock = threading.Lock()
        self.num_running = 0

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignores errors: tests kill clients."""


class _Handler(QuietHandler):
    server: BatchServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.read_json()
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
        self.answer(status, content, headers)

    def do_GET(self) -> None:
        self.answer(200, self.server.files[self.path])

    def do_PUT(self) -> None:
        self.server.puts[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200)


def ok(body: dict[str, Any]) -> Answer:
    """A completion that repeats the prompt, written over several lines."""
    usage = {"prompt_tokens": 2, "completion_tokens": 3}
    return 200, json.dumps({"choices": [{"text": body.get("prompt")}], "usage": usage}, indent=2).encode(), {}


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
