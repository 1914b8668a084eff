"""What the tools that time requests for stopped models share: a server's process and its first tokens.

Imports nothing that vLLM's own environment lacks (`tests.ports`, for example, needs pytest).
"""

import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from startup.standby.status import STATUS, NoStandbyError, ask
from vllm_cli.client.server_processes import command_words

POLL_S = 0.02
TIMEOUT_S = 600.0


@contextmanager
def run_server(words: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`vllm-cli serve WORDS` on a free port, with this Python; yields the process and the port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm_cli", "serve", *words, "--port", str(port)]
    with subprocess.Popen(command) as server:
        try:
            yield server, port
        finally:
            server.terminate()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Polls until the condition holds."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"not in time: {what}"
        time.sleep(POLL_S)


def time_first_token(port: int, model: str | None = None) -> float:
    """Seconds from a streamed request to the first event of its answer, which is read to its end."""
    body: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 8, "stream": True}
    if model is not None:
        body["model"] = model
    begin_s = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    while not (line := response.readline()).startswith(b"data:"):
        assert line, "the answer has no event"
    took_s = time.perf_counter() - begin_s
    assert b'"error"' not in line, line
    response.read()
    connection.close()
    return took_s


def ask_json(port: int, path: str, method: str = "GET") -> tuple[int, Any, http.client.HTTPMessage]:
    """Status, body and head of a short answer; the body is None if it is not JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    connection.request(method, path)
    response = connection.getresponse()
    data = response.read()
    connection.close()
    with suppress(ValueError):
        return response.status, json.loads(data), response.headers
    return response.status, None, response.headers


def is_standby_ready(pid: int) -> bool:
    """Whether the standby that this server keeps has done its imports."""
    for child in psutil.Process(pid).children():
        if command_words(child, "standby") is not None:
            os.environ["VCLI_STANDBY_FOLDER"] = child.environ()["VCLI_STANDBY_FOLDER"]
            with suppress(NoStandbyError):
                return ask(STATUS).is_settled
    return False


def print_times(times: list[float]) -> None:
    """Prints each time, the median and the range, in seconds."""
    print(" ".join(f"{took_s:.3f}" for took_s in times))
    print(f"median {statistics.median(times):.3f} s ({min(times):.3f}-{max(times):.3f}) of {len(times)}")
