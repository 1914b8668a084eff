"""If the standby is stopped, dead, foreign or of another version, the start is cold and hardly slower."""

import os
import signal
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from envs.registry import env
from startup.processes import messages
from startup.standby import forked_server, front_process, sockets
from startup.standby.sockets import socket_folder
from tests.support.cli import run_cli, run_python
from tests.support.containers import works
from tests.support.ports import free_port
from tests.support.standby_process import StandbyProcess
from tests.support.waiting import is_gone, stopped, wait_until

NOBODY: Final = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="acts as another user")

_ASK: Final = """
import sys
from startup.settings.serve_arguments import LauncherLine
from startup.standby.front_process import serve_warm
sys.argv = ["vllm-cli", "serve", *sys.argv[1:]]
exit_code = serve_warm(LauncherLine(sys.argv[2:]))
from startup import start_origin
print("ASKED", exit_code, start_origin.cold_reason, sep="|")
"""
"""The steps of `serve` before its imports. A warm start runs here until its end."""


def _why_cold(
    standby: StandbyProcess, *arguments: object, launcher: tuple[str, ...] = (), extra: Mapping[str, str] | None = None
) -> str:
    """The reason for a cold start, or `warm`."""
    environment = {**standby.environment, "VCLI_STANDBY": "auto", **(extra or {})}
    given = (*arguments, "--preflight-only", "--port", free_port())
    done = run_python(_ASK, *given, environment=environment, launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    _, code, reason = done.stdout.splitlines()[-1].split("|", 2)
    assert code in ("None", "0")
    return reason if code == "None" else "warm"


def _wait_warm(standby: StandbyProcess, model: Path) -> None:
    """Tries until a start is warm. On a busy machine, a template may need more than 200 ms to answer."""
    wait_until(lambda: _why_cold(standby, model) == "warm")


@pytest.mark.thorough
def test_a_stopped_template_leads_to_a_cold_start(standby, tiny_llama):
    with stopped(standby.template().pid):
        assert "does not answer in 200 ms" in _why_cold(standby, tiny_llama)
    _wait_warm(standby, tiny_llama)
    standby.wait_no_server()


@pytest.mark.thorough
def test_leftover_sockets_of_a_killed_standby(tiny_llama):
    with StandbyProcess() as killed:
        template = killed.template()
        killed.process.kill()
        template.kill()
        killed.process.wait()
        wait_until(lambda: is_gone(template.pid))
        assert killed.socket_path().exists()
        wait_until(lambda: "refused" in _why_cold(killed, tiny_llama))  # once, on a busy machine, not at once
        killed.start()
        killed.wait_ready()
        _wait_warm(killed, tiny_llama)


@pytest.mark.thorough
def test_no_standby_at_all(tmp_path, standby):
    assert _why_cold(standby, extra={"XDG_RUNTIME_DIR": str(tmp_path)}).startswith("no standby runs")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        (lambda folder: folder.chmod(0o755), PermissionError, "have mode 0700"),
        (lambda folder: folder.chmod(0o701), PermissionError, "have mode 0700"),
        pytest.param(lambda it: os.chown(it, NOBODY, NOBODY), PermissionError, "must belong to", marks=needs_root),
        (lambda it: it.symlink_to(it.rename(it.with_name("elsewhere"))), NotADirectoryError, "Not a directory"),
    ],
    ids=["readable", "searchable", "user", "link"],
)
def test_a_folder_that_others_may_change_is_not_used(change, error, reason, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "vllm-cli").mkdir(mode=0o700)
    change(tmp_path / "vllm-cli")
    with pytest.raises(error, match=reason):
        sockets.open_folder()


@pytest.mark.thorough
@needs_root
def test_another_users_socket_in_the_folder_is_not_used(standby, tiny_llama):
    """SO_PEERCRED has the user of the process that has called listen(2)."""
    read_fd, write_fd = os.pipe()
    with _without_template(standby) as path:
        pid = os.fork()
        if pid == 0:
            os.umask(0)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(path))
            os.setuid(NOBODY)
            listener.listen()
            os.write(write_fd, b"x")
            connection, _ = listener.accept()
            try:
                connection.send(b"\x06")
                os._exit(0 if connection.recv(1) == b"" else 1)
            except OSError:  # the client has closed the connection
                os._exit(0)
        os.read(read_fd, 1)
        assert "another user" in _why_cold(standby, tiny_llama)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "a request was sent to another user"
    os.close(read_fd)
    os.close(write_fd)


@pytest.mark.thorough
@needs_root
def test_another_user_gets_no_fork(standby, tiny_llama):
    """The user gets no fork even if the files' modes allow access."""
    num_starts = standby.num_starts()
    paths = [standby.socket_path(), standby.socket_path("standby")]
    modes = {path: path.stat().st_mode for path in (standby.runtime_folder, standby.folder, *paths)}
    for path in modes:
        path.chmod(0o777)
    code = (
        "import os, socket, sys\n"
        f"os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "for kind, path in zip((socket.SOCK_STREAM, socket.SOCK_SEQPACKET), sys.argv[1:]):\n"
        "    connection = socket.socket(socket.AF_UNIX, kind); connection.settimeout(60); connection.connect(path)\n"
        "    try:\n"
        "        kind == socket.SOCK_SEQPACKET and connection.send(b'status')\n"
        "        print(repr(connection.recv(100)))\n"
        "    except (BrokenPipeError, ConnectionResetError): print(repr(b''))\n"
    )
    done = run_python(code, *map(str, paths))
    for path, mode in modes.items():
        path.chmod(mode)
    assert done.stdout.split() == ["b''", "b''"], done
    assert standby.num_starts() == num_starts
    _wait_warm(standby, tiny_llama)


@contextmanager
def _without_template(standby: StandbyProcess) -> Iterator[Path]:
    """Moves the template's socket away during the block, which may use the socket's path."""
    path = standby.socket_path()
    elsewhere = path.rename(path.with_suffix(".moved"))
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        elsewhere.rename(path)


@contextmanager
def _impostor(standby: StandbyProcess, answer) -> Iterator[None]:
    """Listens in place of the template. Answers one connection, and reads it to its end.

    Unread messages have descriptors, which would keep the client's standard output open.
    """

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            answer(connection)
            while connection.recv(1 << 16):
                pass

    with _without_template(standby) as path, socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(str(path))
        listener.listen()
        serving = pool.submit(serve)
        yield
        serving.result()


def _after_request(*sections: list[bytes]):
    def answer(connection: socket.socket) -> None:
        connection.send(b"\x06")
        _, fds = messages.receive(connection)
        messages.close_all(fds)
        messages.send(connection, *sections)

    return answer


@pytest.mark.thorough
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda _: None, id="hung"),
        pytest.param(lambda connection: connection.send(b"\x06"), id="hung-after-ack"),
        pytest.param(lambda connection: connection.send(b"\x07"), id="wrong-byte"),
        pytest.param(lambda connection: connection.shutdown(socket.SHUT_RDWR), id="closed"),
        pytest.param(lambda connection: connection.send(b"\x06" + os.urandom(1000)), id="garbage"),
        pytest.param(_after_request([b"ended", b"-9"]), id="process-killed"),
        pytest.param(_after_request([b"refused", b"no reason"]), id="cold"),
        pytest.param(_after_request([b"ready", b"x"]), id="no-descriptor"),
        pytest.param(_after_request([]), id="empty"),
    ],
)
def test_wrong_answers_lead_to_a_cold_start(answer, standby, tiny_llama):
    with _impostor(standby, answer):
        assert _why_cold(standby, tiny_llama) not in ("", "warm")


@pytest.mark.parametrize(
    ("content", "reason"),
    [("trust-remote-code: true", ""), ("port: 0", "warm"), (None, "may be a pipe")],
)
def test_the_fork_decides_with_the_file_of_config(content, reason, standby, tiny_llama, tmp_path):
    file = tmp_path / "serve.yaml"
    _ = os.mkfifo(file) if content is None else file.write_text(content)

    def is_expected() -> bool:  # on a busy machine, not at once
        why = _why_cold(standby, tiny_llama, "--config", file)
        return why == reason if content else reason in why

    wait_until(is_expected)


def test_the_documentation_says_how_long_a_hung_standby_delays_a_start():
    text = " ".join((Path(__file__).parents[3] / "docs" / "fast-starts.md").read_text().split())
    seconds = (front_process._ACK_S, front_process._VERDICT_S, front_process._OWN_S)
    assert "at most {:g} s, one that hangs while it forks by {:g} s, and a router's by {:g} s.".format(*seconds) in text


@pytest.mark.thorough
def test_a_start_that_must_be_warm_fails_with_the_reason(standby, tiny_llama):
    standby.folder.chmod(0o755)
    done = run_cli("serve", tiny_llama, "--standby", "require", environment=standby.environment)
    standby.folder.chmod(0o700)
    assert done.returncode == 3
    assert "--standby require: the standby cannot be used" in done.stderr


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_signal_ends_the_standby_and_removes_its_sockets(number):
    """The standby's imports are done, or it still imports."""
    with StandbyProcess(is_awaited=number == signal.SIGTERM) as standby:
        wait_until(lambda: _has_template(standby))
        template = standby.template()
        standby.process.send_signal(number)
        assert standby.process.wait(60) == 0
        wait_until(lambda: not template.is_running())
        assert not list(standby.folder.glob("*.sock"))


def _has_template(standby: StandbyProcess) -> bool:
    try:
        return bool(standby.templates())
    except (OSError, ValueError):  # it does not listen yet
        return False


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("launcher", "reason"),
    [
        (("env", "LD_PRELOAD=libm.so.6"), "LD_PRELOAD differs"),
        (("prlimit", "--as=100000000000:"), "RLIMIT_AS"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, tuple) else "",
)
def test_what_a_fork_does_not_take_over_leads_to_a_cold_start(launcher, reason, standby, tiny_llama):
    if not works(*launcher, "true"):
        pytest.skip(f"{launcher[0]} does not work here")
    wait_until(lambda: reason in _why_cold(standby, tiny_llama, launcher=launcher))  # not what `_wait_warm` names


def test_a_process_of_an_outer_process_namespace_is_refused():
    """The kernel reports process id 0 for such a process, and /proc does not show it."""
    with (
        socket.socket(socket.AF_UNIX) as connection,
        pytest.raises(forked_server.RefusedError, match="is not within the standby's"),
        forked_server._ensured_to_run(connection, 0),
    ):
        pass


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"VLLM_CACHE_ROOT": "~/cc"},
        {"VLLM_CACHE_ROOT": "cc"},
        {"VLLM_CACHE_ROOT": "~nobody-of-this-name/cc"},
        {"VLLM_CACHE_ROOT": ""},
        {"XDG_CACHE_HOME": "~/xdg"},
        {"HOME": ""},
        {"HOME": "/else/", "VLLM_CACHE_ROOT": "~"},
        {"HOME": None},
        {"HOME": None, "VLLM_CACHE_ROOT": "~/cc"},
    ],
    ids=str,
)
@pytest.mark.parametrize("has_name", [True, False], ids=["named", "nameless"])
def test_the_folder_is_in_the_runtime_folder_or_else_in_the_cache_folder(variables, has_name, monkeypatch):
    if not has_name:  # a user id without an entry, as in containers
        monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    for name in ("XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "VLLM_CACHE_ROOT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert Path(socket_folder()) == env.VLLM_CACHE_ROOT.get() / "vllm_cli" / "standby"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    assert socket_folder() == "/run/user/1/vllm-cli"
