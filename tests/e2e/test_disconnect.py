"""The request of a client that disconnects is cancelled in the engine."""

import json
import socket

import pytest

from tests.e2e.server_process import ServerProcess
from tests.waiting import wait_until


@pytest.mark.thorough
@pytest.mark.parametrize("stream", [True, False])
def test_client_that_disconnects_frees_its_slot(server: ServerProcess, stream: bool) -> None:
    body = json.dumps(
        {"prompt": "Once", "max_tokens": 1500, "ignore_eos": True, "stream": stream, "temperature": 0}
    ).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    aborted = _num_aborted(server)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: server.metric("vllm:num_requests_running") == 1)
    wait_until(lambda: server.metric("vllm:num_requests_running") == 0)
    wait_until(lambda: _num_aborted(server) == aborted + 1)


def _num_aborted(server: ServerProcess) -> float:
    return server.metric("vllm:request_success_total", finished_reason="abort")
