"""Misbehaving clients of a server with TLS: as without TLS, and in the handshake."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.certificates import Certificate, make_certificate, needs_openssl
from tests.e2e.raw_client import RawAnswer, RawClient, request_bytes
from tests.e2e.server_process import ServerProcess
from tests.waiting import wait_until

pytestmark = needs_openssl

MAX_CONNECTIONS = 40
GET = b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n"
LAST = b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
METRICS = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"
LONG = {"prompt": "a", "max_tokens": 3000, "ignore_eos": True, "stream": True, "logprobs": 20, "n": 8}


class TlsServer(ServerProcess):
    """A server with few connections and long time-outs, except for clients that do not read."""

    def __init__(self, folder: Path, certificate: Certificate) -> None:
        words = ["--http-max-connections", str(MAX_CONNECTIONS), "--http-header-timeout", "600"]
        words += ["--http-send-timeout", "2", *certificate.flags]
        super().__init__([str(folder), *words], environment={"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600"})
        self._context = certificate.client_context()

    def connect(self, *, receive_buffer: int | None = None) -> RawClient:
        """A client that has completed the handshake."""
        return RawClient(self.port, receive_buffer=receive_buffer, context=self._context)

    def get(self, request: bytes) -> RawAnswer:
        """The response to a request on a new connection."""
        with self.connect() as client:
            return client.send(request).read()

    def health(self) -> int:
        try:
            return self.get(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").status
        except (OSError, AssertionError):
            return 0

    def num_open(self) -> int:
        """The number of TCP connections of the server's process."""
        sockets = psutil.Process(self.process.pid).net_connections("tcp")
        return sum(connection.status != psutil.CONN_LISTEN for connection in sockets)

    def num_running(self) -> float:
        """The number of sequences that run in the engine."""
        lines = self.get(METRICS).body.decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running{"))


@pytest.fixture(scope="module")
def server(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    with TlsServer(tiny_llama, make_certificate(tmp_path_factory.mktemp("tls"), "server")) as running:
        yield running


@pytest.mark.parametrize("hello", [b"", b"\x16\x03\x01\x02\x00\x01\x00"], ids=["silent", "half a hello"])
def test_handshakes_that_stall_make_room_for_others(server, hello):
    with ExitStack() as stack:
        stalled = [stack.enter_context(RawClient(server.port)).send(hello) for _ in range(3 * MAX_CONNECTIONS)]
        assert server.health() == 200
        assert server.num_open() <= MAX_CONNECTIONS + 1
        assert all(client.is_closed() for client in stalled[: 2 * MAX_CONNECTIONS - 1])


def test_clients_that_do_not_close_make_room(server):
    """They got their response with `Connection: close`, but keep the connection open."""
    with ExitStack() as stack:
        for _ in range(3 * MAX_CONNECTIONS):
            assert stack.enter_context(server.connect()).send(LAST).read().status == 200
        assert server.health() == 200
        assert server.num_open() <= MAX_CONNECTIONS + 1


def test_a_client_that_sends_a_large_body_anyway_can_read_the_error(server):
    with server.connect() as client:
        client.send(request_bytes("/v1/completions", b" " * 50_000_000))
        assert client.read().status == 413


def test_a_client_that_does_not_read_is_disconnected_and_its_request_cancelled(server):
    with server.connect(receive_buffer=4096) as client:
        client.post("/v1/completions", LONG | {"temperature": 1.0})
        server.wait_logged("has read nothing for 2 s (--http-send-timeout)")
        wait_until(lambda: not server.num_running())
