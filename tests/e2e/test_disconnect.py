"""A client that goes away frees its place within a second."""

import json
import socket
import time

import pytest
from server_process import ServerProcess


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_goes_away_frees_its_slot(server: ServerProcess, stream: bool) -> None:
    body = json.dumps(
        {"prompt": "Once", "max_tokens": 1500, "ignore_eos": True, "stream": stream, "temperature": 0}
    ).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    client = socket.create_connection(("127.0.0.1", server.port))
    client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    _wait_running(server, 1)
    client.close()
    begin = time.monotonic()
    _wait_running(server, 0)
    assert time.monotonic() - begin < 1


def _wait_running(server: ServerProcess, count: int) -> None:
    deadline = time.monotonic() + 10
    while server.metric("vllm:num_requests_running") != count:
        assert time.monotonic() < deadline
        time.sleep(0.02)
