"""TLS and API keys of a real server, from the first response on and while their files change."""

import http.client
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from tests.certificates import Certificate, encrypt_key, make_certificate, needs_openssl
from tests.e2e.process_tree import for_each_process
from tests.e2e.server_process import ServerProcess
from tests.waiting import wait_until

pytestmark = needs_openssl

ON_A_TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"


class SecureServer(ServerProcess):
    """A server with TLS, whose client trusts its certificate."""

    def __init__(self, model: Path, *arguments: str, certificate: Certificate, environment: Mapping[str, str]) -> None:
        lasting = {**environment, "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600"}
        super().__init__([str(model), *arguments, *certificate.flags], wait=False, environment=lasting)
        self.context = certificate.client_context()

    def health(self) -> int:
        try:
            return self.get("/health")[0]
        except OSError:
            return 0

    def connect(self) -> http.client.HTTPSConnection:
        """A connection that is opened with its first request."""
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=60, context=self.context)

    def get(self, path: str, key: str = "") -> tuple[int, bytes]:
        """Status and body, on a new connection."""
        with closing(self.connect()) as connection:
            return get(connection, path, key)


def get(connection: http.client.HTTPSConnection, path: str, key: str = "") -> tuple[int, bytes]:
    connection.request("GET", path, headers={"Authorization": f"Bearer {key}"})
    response = connection.getresponse()
    return response.status, response.read()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a server's certificate and its API keys."""
    make_certificate(tmp_path, "server")
    (tmp_path / "keys").write_text("filed-key-1\nfiled-key-2\n")
    (tmp_path / "keys").chmod(0o600)
    return tmp_path


@pytest.fixture
def server(tiny_llama: Path, files: Path, cold_or_warm: dict[str, str]) -> Iterator[SecureServer]:
    certificate = Certificate(files / "server.crt", files / "server.key")
    words = ["--api-key", "given-key-1", "given-key-2", "--api-key-file", str(files / "keys"), "--enable-ssl-refresh"]
    with SecureServer(tiny_llama, *words, certificate=certificate, environment=cold_or_warm) as running:
        yield running


def test_tls_and_keys_hold_from_the_first_response_on_and_are_renewed(server, files):
    _wait_answer_over_tls(server)
    server.wait_ready()
    command_lines = for_each_process(server, lambda process: " ".join(process.cmdline()))
    assert command_lines
    assert not any("given-key" in words for words in command_lines)
    assert server.get("/v1/models")[0] == 401
    for key in ("given-key-1", "given-key-2", "filed-key-1", "filed-key-2"):
        assert server.get("/v1/models", key)[0] == 200

    previous = server.connect()
    assert get(previous, "/v1/models", "filed-key-1")[0] == 200
    socket_before = previous.sock
    (files / "keys").write_text("filed-key-2\nfiled-key-3\n")
    renewed = make_certificate(files, "renewed")
    for old, new in zip((files / "server.key", files / "server.crt"), reversed(renewed), strict=True):
        shutil.copyfile(new, old)
    server.context = renewed.client_context()
    wait_until(lambda: server.health() == 200)
    wait_until(lambda: server.get("/v1/models", "filed-key-3")[0] == 200)
    assert server.get("/v1/models", "filed-key-1")[0] == 401
    assert server.get("/v1/models", "filed-key-2")[0] == 200
    assert get(previous, "/v1/models", "filed-key-1")[0] == 401, "a removed key"
    assert get(previous, "/v1/models", "filed-key-3")[0] == 200
    assert previous.sock is socket_before, "a connection with the previous certificate stays open"
    previous.close()

    (files / "server.key").write_text("broken")
    (files / "keys").write_text("")
    server.wait_logged("the previous ones stay in use")
    server.wait_logged("the previous keys stay valid")
    assert server.get("/v1/models", "filed-key-3")[0] == 200, server.log

    assert "prefer VLLM_API_KEY or --api-key-file" in server.log
    assert not any(key in server.log for key in ("given-key-1", "given-key-2", "filed-key", "Traceback"))


def test_an_encrypted_key_fails_the_start_without_a_prompt(tiny_llama, tmp_path):
    certificate = make_certificate(tmp_path, "server")
    encrypt_key(certificate.key)
    serve = [sys.executable, "-m", "vllm_cli", "serve", str(tiny_llama), "--port", "0", *certificate.flags]
    done = subprocess.run(
        [sys.executable, "-c", ON_A_TERMINAL, *serve],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 3, done.stdout
    assert f"--ssl-keyfile {certificate.key} is encrypted" in done.stdout
    assert "pass phrase" not in done.stdout
    assert "Traceback" not in done.stdout


def _wait_answer_over_tls(server: SecureServer) -> None:
    """Waits for the first response over TLS, which on most machines the responder sends."""

    def answers() -> bool:
        try:
            status, body = server.get("/health")
        except OSError:
            return False
        assert status == 200 or json.loads(body)["status"] == "starting"
        return True

    wait_until(answers)
