"""TLS and API keys of a real server: in the first response, after changes of files, with bad clients."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.e2e.server_process import ServerProcess, for_each_process
from tests.support.certificates import Certificate, make_certificate, needs_openssl
from tests.support.http_client import Answer, RawClient, request_bytes
from tests.support.standby_process import OFF
from tests.support.waiting import wait_until

pytestmark = needs_openssl


class TlsServer(ServerProcess):
    """A server with TLS. Its clients trust its certificate, and idle connections stay open."""

    def __init__(
        self, model: Path, *arguments: str, certificate: Certificate, environment: Mapping[str, str] = OFF
    ) -> None:
        lasting = {**environment, "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600"}
        super().__init__([str(model), *arguments, *certificate.flags], wait=False, environment=lasting)
        self.context = certificate.client_context()

    def health(self) -> int:
        try:
            return self.get("/health").status
        except (OSError, AssertionError):
            return 0

    def connect(self) -> RawClient:
        """A client that has completed the handshake."""
        return RawClient(self.port, context=self.context)

    def get(self, path: str, key: str = "") -> Answer:
        """The response to a request on a new connection."""
        with self.connect() as client:
            return get(client, path, key)


def get(client: RawClient, path: str, key: str) -> Answer:
    return client.get(path, authorization=f"Bearer {key}").read()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a server's certificate and its API keys."""
    make_certificate(tmp_path, "server")
    (tmp_path / "keys").write_text("filed-key-1\nfiled-key-2\n")
    (tmp_path / "keys").chmod(0o600)
    return tmp_path


@pytest.fixture
def server(tiny_llama: Path, files: Path, cold_or_warm: dict[str, str]) -> Iterator[TlsServer]:
    certificate = Certificate(files / "server.crt", files / "server.key")
    arguments = [
        "--api-key",
        "given-key-1",
        "given-key-2",
        "--api-key-file",
        str(files / "keys"),
        "--enable-ssl-refresh",
    ]
    with TlsServer(tiny_llama, *arguments, certificate=certificate, environment=cold_or_warm) as running:
        yield running


def test_tls_and_keys_hold_from_the_first_response_on_and_are_renewed(server, files):
    wait_until(server.health)  # on most machines, the responder sends the first answer
    server.wait_ready()
    command_lines = for_each_process(server, lambda process: " ".join(process.cmdline()))
    assert command_lines
    assert not any("given-key" in arguments for arguments in command_lines)
    assert server.get("/v1/models").status == 401
    for key in ("given-key-1", "given-key-2", "filed-key-1", "filed-key-2"):
        assert server.get("/v1/models", key).status == 200

    previous = server.connect()
    assert get(previous, "/v1/models", "filed-key-1").status == 200
    (files / "keys").write_text("filed-key-2\nfiled-key-3\n")
    renewed = make_certificate(files, "renewed")
    for old, new in zip((files / "server.key", files / "server.crt"), reversed(renewed), strict=True):
        shutil.copyfile(new, old)
    server.context = renewed.client_context()
    wait_until(lambda: server.health() == 200)
    wait_until(lambda: server.get("/v1/models", "filed-key-3").status == 200)
    assert server.get("/v1/models", "filed-key-1").status == 401
    assert server.get("/v1/models", "filed-key-2").status == 200
    assert get(previous, "/v1/models", "filed-key-1").status == 401, "a removed key, on a connection that stays open"
    assert get(previous, "/v1/models", "filed-key-3").status == 200
    previous.socket.close()

    (files / "server.key").write_text("broken")
    (files / "keys").write_text("")
    server.wait_logged("The previous files stay in use")
    server.wait_logged("The previous keys stay valid")
    assert server.get("/v1/models", "filed-key-3").status == 200, server.log

    assert "prefer VLLM_API_KEY or --api-key-file" in server.log
    assert not any(key in server.log for key in ("given-key-1", "given-key-2", "filed-key", "Traceback"))


def test_a_client_that_sends_a_large_body_anyway_can_read_the_error(tiny_llama, tmp_path):
    certificate = make_certificate(tmp_path, "server")
    with TlsServer(tiny_llama, "--http-max-body-size", "1000000", certificate=certificate) as server:
        server.wait_ready()
        with server.connect() as client:
            client.send(request_bytes("/v1/completions", b" " * 12_000_000))  # in 5 s, and more than sockets hold
            assert client.read().status == 413
