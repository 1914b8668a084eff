"""Access to the router: renewed TLS certificates, a port in use, and SIGHUP."""

import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
from pathlib import Path

import pytest

from envs.registry import env
from tests.router.router_process import RouterProcess, foreign
from tests.support.certificates import Certificate, make_certificate, needs_openssl
from tests.support.cli import CLI
from tests.support.http_client import RawClient, ask
from tests.support.ports import free_port
from tests.support.processes import GONE_S
from tests.support.waiting import wait_listening, wait_until

pytestmark = pytest.mark.thorough


@needs_openssl
def test_a_renewed_certificate_counts_for_new_connections(tmp_path):
    used = make_certificate(tmp_path, "used")
    first, second = used.certificate.read_bytes(), make_certificate(tmp_path, "second")
    words = (*used.flags, "--enable-ssl-refresh")
    with RouterProcess(tmp_path, {"a": foreign()}, *words, wait=False) as router:
        wait_listening(router.port)
        assert _certificate(router.port) == first.decode()
        assert _health(router, used) == 200
        shutil.copyfile(second.key, used.key)
        shutil.copyfile(second.certificate, used.certificate)
        wait_until(lambda: _certificate(router.port) == second.certificate.read_text())
        assert _health(router, second) == 200


def test_a_file_that_cannot_be_used_is_named(tmp_path):
    broken = tmp_path / "broken"
    broken.touch()
    with RouterProcess(tmp_path, {"a": foreign()}, "--api-key-file", str(broken), wait=False) as router:
        assert router.process.wait(GONE_S) == 3
        assert router.log.splitlines()[1:] == ["Code: VC-KEYS-OR-CERTIFICATES"]
        assert f"--api-key-file {broken} holds no" in router.log


def test_a_port_in_use_is_an_error_and_leaves_no_folder(tmp_path):
    with tempfile.TemporaryDirectory(dir="/tmp") as short, socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = ("--port", str(other.getsockname()[1]))
        environment = {env.TMPDIR.name: short}
        with RouterProcess(tmp_path, {"a": foreign()}, *port, environment=environment, wait=False) as router:
            assert router.process.wait(GONE_S) == 3
            assert "is in use by another process" in router.log
        assert not list(Path(short).iterdir())


def test_a_unix_socket_takes_the_place_of_a_port(tmp_path):
    path = tmp_path / "s"
    with RouterProcess(tmp_path, {"a": foreign()}, "--uds", str(path), wait=False):
        with socket.socket(socket.AF_UNIX) as probe:
            wait_until(lambda: probe.connect_ex(str(path)) == 0)
        with RawClient(str(path)) as client:
            assert client.get("/health").read().status == 200


def test_models_of_the_command_line_end_by_a_signal_that_ends_a_server(tiny_llama, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    port = free_port()
    words = [str(tiny_llama), str(other), "--engine", "embedded", "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen([*CLI, "serve", *words]) as router:
        wait_until(lambda: ask(f"http://127.0.0.1:{port}/health").status == 200)
        models = ask(f"http://127.0.0.1:{port}/v1/models").json["data"]
        router.send_signal(signal.SIGHUP)
        assert router.wait(GONE_S) == -signal.SIGHUP
    assert {model["id"] for model in models} == {tiny_llama.name, "other"}


def _certificate(port: int) -> str:
    return ssl.get_server_certificate(("127.0.0.1", port))


def _health(router: RouterProcess, trusted: Certificate) -> int:
    return ask(f"https://127.0.0.1:{router.port}/health", context=trusted.client_context()).status
