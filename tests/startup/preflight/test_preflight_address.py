"""An address in use is reported with its holder, listening or not, and the check leaves no socket behind."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from startup.preflight.report import PreflightReport
from tests.ports import free_port

Preflight = Callable[..., PreflightReport]

HOLDER = """
import socket, sys
family, address, reuse, listening = sys.argv[1:5]
holder = socket.socket(socket.AF_UNIX if family == "unix" else socket.AF_INET)
if reuse == "reuse":
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
holder.bind(address if family == "unix" else ("127.0.0.1", 0))
if listening == "listening":
    holder.listen()
print(holder.getsockname()[1] if family == "tcp" else "", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(family: str, address: object, *words: str) -> Iterator[tuple[int, int]]:
    """Runs another process with the socket; yields its pid and port."""
    command = [sys.executable, "-c", HOLDER, family, str(address), *words]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin
    assert process.stdout
    try:
        port = process.stdout.readline().strip()
        yield process.pid, int(port or 0)
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def message_of(report: PreflightReport, check: str, severity: str = "error") -> str:
    (message,) = [f.message for f in report.findings if f.check == check and f.severity == severity]
    return message


def test_a_free_port_is_no_finding_and_stays_free(preflight):
    port = free_port()
    for _ in range(2):
        assert not [f for f in preflight("/nowhere", port=port, host="127.0.0.1").findings if f.check == "port"]


def test_a_port_in_use_is_reported_with_pid_and_command(preflight):
    with holder("tcp", "-", "reuse", "listening") as (pid, port):
        message = message_of(preflight("/nowhere", port=port, host="127.0.0.1"), "port")
    assert f"127.0.0.1:{port} is in use by pid {pid} ({sys.executable}" in message
    assert "choose another --port" in message


def test_a_port_that_is_bound_without_listening_is_in_use(preflight):
    with holder("tcp", "-", "no-reuse", "silent") as (_, port):
        message = message_of(preflight("/nowhere", port=port, host="127.0.0.1"), "port")
    assert "a process that is not visible from here, or does not listen yet" in message


def test_secrets_in_the_command_line_of_the_holder_are_masked(preflight):
    words = ("reuse", "listening", "--api-key", "sesame", "--hf-token=sesame", "--max-model-len", "512")
    with holder("tcp", "-", *words) as (_, port):
        message = message_of(preflight("/nowhere", port=port, host="127.0.0.1"), "port")
    assert "sesame" not in message
    assert "--max-model-len" in message or "…" in message


def test_the_launchers_own_port_is_not_checked(preflight):
    with socket.create_server(("127.0.0.1", 0)) as ours:
        port = ours.getsockname()[1]
        report = preflight("/nowhere", port=port, host="127.0.0.1", is_listening=True)
    assert not [f for f in report.findings if f.check == "port"]


def test_a_port_that_only_this_process_holds_is_in_use(preflight):
    with socket.create_server(("127.0.0.1", 0)) as ours:
        message = message_of(preflight("/nowhere", port=ours.getsockname()[1], host="127.0.0.1"), "port")
    assert "is in use by" in message


def test_a_host_of_another_machine_is_an_error(preflight):
    assert "192.0.2.1" in message_of(preflight("/nowhere", port=4711, host="192.0.2.1"), "port")


def test_a_free_socket_path_is_no_finding_and_is_not_created(tmp_path, preflight):
    assert not [f for f in preflight("/nowhere", uds=str(tmp_path / "s")).findings if f.check == "uds"]
    assert list(tmp_path.iterdir()) == []


def test_a_unix_socket_in_use_is_reported_with_pid(tmp_path, preflight):
    path = tmp_path / "s"
    with holder("unix", path, "-", "listening") as (pid, _):
        message = message_of(preflight("/nowhere", uds=str(path)), "uds")
        assert path.is_socket()
    assert f"{path} is in use by pid {pid}" in message


def test_unix_socket_with_a_full_queue_is_in_use(tmp_path, preflight):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as ours, socket.socket(socket.AF_UNIX) as client:
        ours.bind(str(path))
        ours.listen(0)
        client.connect(str(path))
        assert "is in use" in message_of(preflight("/nowhere", uds=str(path)), "uds")


def test_a_unix_socket_that_was_left_behind_is_information(tmp_path, preflight):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    assert "left behind" in message_of(preflight("/nowhere", uds=str(path)), "uds", "info")


def test_unusable_socket_paths_are_errors(tmp_path, preflight):
    (tmp_path / "file").touch()
    assert "is not a socket" in message_of(preflight("/nowhere", uds=str(tmp_path / "file")), "uds")
    assert "there is no folder" in message_of(preflight("/nowhere", uds=str(tmp_path / "x" / "s")), "uds")
    assert "at most 107 are possible" in message_of(preflight("/nowhere", uds=str(tmp_path / ("s" * 108))), "uds")


def test_all_missing_tls_files_are_reported(tmp_path, preflight):
    report = preflight("/nowhere", ssl_keyfile=str(tmp_path / "key"), ssl_certfile=str(tmp_path / "cert"))
    assert [f.message.split()[0] for f in report.errors if f.check == "tls"] == ["--ssl-keyfile", "--ssl-certfile"]
