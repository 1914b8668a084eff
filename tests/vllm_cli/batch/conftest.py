"""Fixtures for `run-batch`: a server whose answers a test chooses, batch files, the command as a process."""

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.http_server import Request, ScriptedServer, serving


class BatchServer(ScriptedServer):
    """A server that answers each POST with the result of `decide_body`, and counts requests by prompt."""

    def __init__(self) -> None:
        super().__init__(self._decide)
        self.decide_body: Callable[[dict[str, Any]], tuple[Any, ...]] = ok
        self.asked: Counter[str] = Counter()
        self.files: dict[str, bytes] = {}
        """Path -> content of files for GET. PUT adds files."""
        self.num_running = self.max_at_once = 0
        self._lock = threading.Lock()

    def _decide(self, request: Request) -> tuple[Any, ...]:
        if request.method == "GET":
            return (200, self.files[request.path])
        if request.method == "PUT":
            self.files[request.path] = request.body
            return (200,)
        body = request.json
        with self._lock:
            self.asked[body.get("prompt", "")] += 1
            self.num_running += 1
            self.max_at_once = max(self.max_at_once, self.num_running)
        try:
            return self.decide_body(body)
        finally:
            with self._lock:
                self.num_running -= 1

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignores errors, because tests kill clients."""


def ok(body: dict[str, Any]) -> tuple[Any, ...]:
    """A completion that repeats the prompt, as JSON on several lines."""
    usage = {"prompt_tokens": 2, "completion_tokens": 3}
    return 200, json.dumps({"choices": [{"text": body.get("prompt")}], "usage": usage}, indent=2).encode()


def error(status: int, message: str, **headers: str) -> tuple[Any, ...]:
    """An error in OpenAI's envelope."""
    return status, {"error": {"message": message, "type": "x", "code": status}}, headers


def request_line(number: int, **changes: Any) -> dict[str, Any]:
    """A line with a completion request whose prompt is its custom_id."""
    name = f"request-{number}"
    return {"custom_id": name, "method": "POST", "url": "/v1/completions", "body": {"prompt": name}} | changes


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def server() -> Iterator[BatchServer]:
    with serving(BatchServer()) as running:
        yield running


@pytest.fixture
def start_batch(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """A function that starts `vllm-cli run-batch` with `in.jsonl` and `out.jsonl` in the test's folder."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str, file_size: int | None = None) -> "subprocess.Popen[str]":
        files = ("-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"))
        limit = () if file_size is None else ("prlimit", f"--fsize={file_size}")
        process = subprocess.Popen(
            [*limit, sys.executable, "-m", "vllm_cli", "run-batch", *files, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run_batch(invoke, tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """A function that runs `run-batch` with the same files in this process."""
    files = ("-i", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl")
    return lambda *words: invoke("run-batch", *files, *words)
