"""While the embedded engine's server is ready, the responder answers probes that its loop would delay."""

import re
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.e2e.process_tree import find_process
from tests.e2e.server_process import ServerProcess
from tests.support.http_client import Answer, RawClient
from tests.support.processes import stopped
from tests.support.waiting import wait_until

_PATHS = ("/health", "/ping", "/readyz", "/livez")


@pytest.fixture(scope="module")
def shared(tiny_llama: Path) -> Iterator[ServerProcess]:
    with ServerProcess([str(tiny_llama)]) as running:
        yield running


def _request(path: str, headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: a\r\n{headers}\r\n".encode()


def _ask(client: RawClient, path: str = "/health") -> Answer:
    return client.send(_request(path)).read()


def _status_of_stopped(server: ServerProcess, path: str) -> int:
    """0 without an answer: this process was so slow that the connection was passed on to the server."""
    with suppress(TimeoutError), RawClient(server.port) as client:
        client.socket.settimeout(1)
        return _ask(client, path).status
    return 0


def test_probes_are_answered_while_the_event_loop_is_held_and_503_after_two_seconds(shared):
    def are_all(status: int) -> bool:
        return {_status_of_stopped(shared, path) for path in _PATHS} == {status}

    def are_answered() -> bool:
        with stopped(shared.process.pid):
            return are_all(200)

    wait_until(are_answered)
    with stopped(shared.process.pid):
        wait_until(lambda: are_all(503))
    wait_until(lambda: shared.health() == 200)


def test_answers_have_the_bytes_of_the_servers_own(shared, tiny_llama):
    with ServerProcess([str(tiny_llama)], environment={"VCLI_PROBE_PROCESS": "0"}) as other:
        assert find_process(other, "responder") is None
        expected = _answers(other, timeout_s=60)
    answers: list[bytes] = []

    def is_answered() -> bool:
        answers.clear()
        with stopped(shared.process.pid), suppress(TimeoutError):
            answers.extend(_answers(shared, timeout_s=1))
        return len(answers) == len(expected) and b" 503 " not in answers[-1]

    wait_until(is_answered)
    assert answers == expected


def _answers(server: ServerProcess, *, timeout_s: float) -> list[bytes]:
    headers = ("", "Connection: close\r\n")
    return [_bytes(server, _request(path, each), timeout_s) for path in _PATHS for each in headers]


def _bytes(server: ServerProcess, request: bytes, timeout_s: float) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout_s) as client:
        client.sendall(request)
        received = b""
        while not received.endswith(b"\r\n\r\n"):
            received += client.recv(1 << 12)
    return re.sub(rb"date: [^\r]*", b"date: D", received)


def test_every_probe_is_in_the_access_log(shared):
    """On one connection; another one takes its place after a 503, which a busy machine may cause."""
    expected: Counter[str] = Counter()

    def are_answered() -> bool:
        with RawClient(shared.port) as client:
            address = "{}:{}".format(*client.socket.getsockname())
            for path in (*_PATHS, *_PATHS):
                if _ask(client, path).status != 200:
                    return False
                expected[f'{address} - "GET {path} HTTP/1.1" 200'] += 1
        return True

    wait_until(are_answered)
    for line, number in expected.items():
        wait_until(lambda line=line, number=number: shared.log.count(line) == number)  # type: ignore[misc]


def test_there_is_no_responder_if_answers_depend_on_the_request(tiny_llama):
    with ServerProcess([str(tiny_llama), "--enable-request-id-headers"]) as server:
        wait_until(lambda: find_process(server, "responder") is None)
        assert psutil.pid_exists(server.process.pid)
