"""Variables, limits, shared memory, address and process names of a start. No socket is left behind."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from startup.session.preflight.network import describe_process
from startup.session.preflight.report import PreflightReport
from tests.support.cli import run_cli
from tests.support.ports import free_port


def found(report: PreflightReport, check: str, severity: str = "error") -> list[str]:
    return [f.message for f in report.findings if (f.check, f.severity) == (check, severity)]


@pytest.mark.parametrize(
    ("variables", "severity", "told"),
    [
        ({"VLLM_WORKER_MULTIPROC_METHOD": "forksever"}, "error", ["'forksever' … did you mean 'forkserver'?"]),
        ({"VLLM_LOGGING_LEVEL": "X", "VLLM_SERVER_DEV_MODE": "X"}, "error", ["VLLM_LOGGING", "VLLM_SERVER_DEV_MODE"]),
        ({"VCLI_NO_SUCH_THING": "1"}, "warning", ["VCLI_NO_SUCH_THING"]),
        ({"VLLM_ATTENTION_BACKEND": "FLASH_ATTN"}, "info", ["does not read VLLM_ATTENTION_BACKEND:"]),
    ],
    ids=["one", "all wrong ones at once", "misspelt", "of vLLM"],
)
def test_variables_are_examined_once(variables, severity, told, preflight, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    report = preflight("some/model")
    assert {f.check for f in report.findings if f.severity != "unchecked"} == {"environment"}
    messages = sorted(found(report, "environment", severity))
    assert len(messages) == len(told)
    for message, texts in zip(messages, told, strict=True):
        assert [text for text in texts.split(" … ") if text not in message] == [], message


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("{}/new/folder", None),
        ("{}/file/folder", "nothing is cached between starts: {}/file/folder/vllm_cli cannot be written to (Not a dir"),
        ("/proc/folder", "nothing is cached between starts: /proc/folder/vllm_cli cannot be written to"),
    ],
    ids=["new", "in a file", "writable by its mode, for root"],
)
def test_a_cache_folder_that_cannot_be_written_to_is_a_warning(place, told, preflight, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VLLM_CACHE_ROOT", place.format(tmp_path))
    messages = found(preflight("/nowhere"), "cache", "warning")
    assert len(messages) == (told is not None)
    assert all(each.startswith(told.format(tmp_path)) and "set VLLM_CACHE_ROOT" in each for each in messages)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("limit", "severity", "told"), [(256, "warning", "256 open files are allowed"), (32, "error", "ulimit -n 1024")]
)
def test_small_limits_of_the_process_are_reported_with_the_need(limit, severity, told, model_path):
    arguments = ("serve", model_path, "--engine", "embedded", "--preflight-only", "--json", "--port", "0")
    done = run_cli(*arguments, launcher=("prlimit", f"--nofile={limit}:"))
    (finding,) = (each for each in json.loads(done.stdout)["findings"] if each["check"] == "nofile")
    assert (finding["severity"], told in finding["message"]) == (severity, True)


def test_shared_memory_must_exist_and_may_be_small_but_not_full(tmp_path, model_path, preflight):
    (finding,) = preflight(model_path, shm=tmp_path / "shm").errors
    assert (finding.check, "Mount a tmpfs there" in finding.message) == ("shm", True)
    assert preflight(model_path, shm=Path("/dev/shm")).errors == ()
    assert [f.check for f in preflight(model_path, shm=Path("/proc")).findings] == ["memory", "shm"]


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
def holder(family: str, address: object, *arguments: str) -> Iterator[tuple[int, int]]:
    """Runs another process with the socket. Yields its process id and port."""
    command = [sys.executable, "-c", HOLDER, family, str(address), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        port = process.stdout.readline().strip()
        yield process.pid, int(port or 0)
        process.stdin.close()


def test_a_port_in_use_is_reported_with_pid_and_command_without_its_secrets(preflight):
    arguments = ("reuse", "listening", "--api-key", "sesame", "--hf-token=sesame", "--max-model-len", "512")
    with holder("tcp", "-", *arguments) as (pid, port):
        (message,) = found(preflight("/nowhere", port=port, host="127.0.0.1"), "port")
    assert f"127.0.0.1:{port} is in use by pid {pid} ({sys.executable}" in message
    assert "choose another --port" in message
    assert "sesame" not in message
    assert "--max-model-len" in message or "…" in message


def test_a_port_that_is_bound_without_listening_is_in_use(preflight):
    with holder("tcp", "-", "no-reuse", "silent") as (_, port):
        (message,) = found(preflight("/nowhere", port=port, host="127.0.0.1"), "port")
    assert "a process that is not visible from here, or does not listen yet" in message


def test_a_free_port_stays_free_and_one_of_this_process_is_in_use_unless_it_is_the_launchers_own(preflight):
    port = free_port()
    assert found(preflight("/nowhere", port=port, host="127.0.0.1"), "port") == []
    with socket.create_server(("127.0.0.1", port)):
        (message,) = found(preflight("/nowhere", port=port, host="127.0.0.1"), "port")
        assert found(preflight("/nowhere", port=port, host="127.0.0.1", is_listening=True), "port") == []
    assert "is in use by" in message


def test_a_host_of_another_machine_is_an_error(preflight):
    (message,) = found(preflight("/nowhere", port=4711, host="192.0.2.1"), "port")
    assert "192.0.2.1" in message


def test_a_unix_socket_in_use_is_reported_with_pid(tmp_path, preflight):
    path = tmp_path / "s"
    with holder("unix", path, "-", "listening") as (pid, _):
        (message,) = found(preflight("/nowhere", uds=str(path)), "uds")
        assert path.is_socket()
    assert f"{path} is in use by pid {pid}" in message


def test_a_unix_socket_that_was_left_behind_is_information_and_a_free_path_is_no_finding(tmp_path, preflight):
    path = tmp_path / "s"
    assert not [f for f in preflight("/nowhere", uds=str(path)).findings if f.check == "uds"]
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    (message,) = found(preflight("/nowhere", uds=str(path)), "uds", "info")
    assert "left behind" in message


@pytest.mark.parametrize(
    ("name", "told"),
    [("file", "is not a socket"), ("x/s", "there is no folder"), ("s" * 108, "at most 107 are possible")],
    ids=["file", "no folder", "long"],
)
def test_unusable_socket_paths_are_errors(name, told, tmp_path, preflight):
    (tmp_path / "file").touch()
    (message,) = found(preflight("/nowhere", uds=str(tmp_path / name)), "uds")
    assert told in message


@pytest.mark.parametrize("name", ["PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"])
def test_a_folder_of_metrics_that_cannot_be_used_is_one_line(preflight, monkeypatch, tmp_path, name):
    (tmp_path / "file").touch()
    for folder, is_wrong in ((tmp_path / "none", True), (tmp_path / "file", True), (tmp_path, False)):
        monkeypatch.setenv(name, str(folder))
        messages = [each for each in found(preflight("/nowhere"), "environment") if name in each]
        assert bool(messages) == is_wrong
        assert all(f"{name}={folder} cannot be written to" in each for each in messages)


_FORBID = """
import ctypes, json, sys
from startup.session.preflight.resources import check_libraries
assert list(check_libraries()) == []
if ctypes.CDLL(None, use_errno=True).prctl(65, 1, 0, 0, 0):  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN
    sys.exit(77)
print([finding.message for finding in check_libraries()])
"""


def test_memory_that_may_not_be_executable_is_told_with_the_setting():
    done = subprocess.run([sys.executable, "-c", _FORBID], capture_output=True, text=True, timeout=60)
    if done.returncode == 77:
        pytest.skip("the kernel has no PR_SET_MDWE")
    assert "MemoryDenyWriteExecute=" in done.stdout, done.stderr


_RENAMES = """
import sys
from base.machine.command_line import replace_command_line
replace_command_line(bytes.fromhex(sys.argv[1]))
print("renamed", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("command_line", "shown"),
    [
        (b"VLLM::EngineCore" + 200 * b" ", "(VLLM::EngineCore)"),
        (b"VLLM::EngineCore" + 200 * b"\0", "(VLLM::EngineCore)"),
        (b"VLLM::EngineCore" + 100 * b" \0", "(VLLM::EngineCore)"),
        (b"nginx: master\nprocess\ttwo\0", "(nginx: master process two)"),
        (b"a\x1b[31m\x07b\r\0", r"(a\x1b[31m\x07b)"),
        (b"a\xff\xe2\x80\xaeb\0", r"(a\udcff\u202eb)"),
        (b"vllm\0serve\0--api-key\0sk-1\0m\0", "(vllm serve --api-key ********"),
        (b"vllm serve --api-key sk-1 -tp 1    ", "(vllm serve --api-key ******** -tp 1)"),
        (b"vllm serve --hf-token=sk-1\0\0\0\0", "(vllm serve --hf-token=********)"),
        (b"x" * 4000 + b"\0", f"({'x' * 119}…)"),
        (b"", "(python"),
    ],
    ids=[*("blanks", "NULs", "both", "lines", "ESC", "bytes", "secret", "title", "one word", "long", "none")],
)
def test_a_process_is_named_in_one_short_line(command_line, shown):
    command = [sys.executable, "-c", _RENAMES, command_line.hex()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"renamed\n"
        found = describe_process(process.pid)
    assert found.startswith(f"pid {process.pid} {shown}")
    assert "sk-1" not in found
    assert found.isprintable()
