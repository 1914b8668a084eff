"""A router with one model: --idle-stop, --restart, and a socket of a service manager."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.e2e.server_process import ServerProcess
from tests.support.cli import run_cli
from tests.support.folders import short_folder
from tests.support.http_client import RawClient, ask
from tests.support.waiting import is_gone, wait_until

_BODY = {"prompt": "a", "max_tokens": 2}
_LONG = {"prompt": "a", "max_tokens": 4000, "stream": True, "ignore_eos": True, "n": 8}
_COLD = ("--standby", "off")


class _Server(ServerProcess):
    """A router with its only model."""

    def __init__(self, model: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        super().__init__([str(model), "--engine", "embedded", *arguments], environment=environment)

    def state(self) -> str:
        """The model's state in the answers to probes."""
        return ask(f"{self.url}/health").headers.get("model-state", "")

    def wait_stopped(self) -> None:
        wait_until(lambda: self.state() == "stopped", 240)

    def child(self) -> psutil.Process:
        """Waits until the model is ready. Returns the process that the router has started for it."""
        self.wait(lambda: self.ask("/readyz?model").status == 200 and len(self.children_with("--uds")) == 1)
        (child,) = self.children_with("--uds")
        return child

    def kill_child(self) -> None:
        """Kills the model's process. Returns once the router has noticed its end."""
        child = self.child()
        child.kill()
        wait_until(lambda: is_gone(child.pid))

    def start_warm(self) -> None:
        """Starts the model until a start is warm. On a busy machine, a template may be too slow (40 ms)."""
        while "warm start: forked from the standby's process" not in self.log:
            self.wait_stopped()
            assert self.ask_model() == 200

    def ask_model(self) -> int:
        return ask(f"{self.url}/v1/completions", _BODY).status


@pytest.fixture(scope="module")
def server(tiny_llama: Path) -> Iterator[_Server]:
    with _Server(tiny_llama, "--idle-stop", "1s") as running:
        yield running


def test_an_idle_model_stops_and_a_request_starts_it(server):
    server.wait_stopped()
    assert not server.children_with("--uds")
    num_starts = server.metric("vllm_cli:model_starts_total")
    assert server.metric("vllm_cli:model_state", state="stopped") == 1
    assert ask(f"{server.url}/readyz?model").status == 503
    assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text(), "the router is a light process"
    with RawClient(server.port) as client:
        client.post("/v1/completions", _LONG)  # the model is not idle while this request runs
        server.child()
        assert server.metric("vllm_cli:model_state", state="stopped") == 0
        assert ask(f"{server.url}/readyz?model").json == {"status": "ready"}
    assert server.metric("vllm_cli:model_starts_total") == num_starts + 1
    assert server.metric("vllm_cli:router_starts_total", outcome="ready") == num_starts + 1


def _own_sockets(folder: Path) -> list[Path]:
    """The standby's sockets for templates, which exist once its imports are done."""
    return list(folder.glob("vcli-*/standby-*/*-embedded.sock"))


def _created_ns(folder: Path) -> int | None:
    """The time when the only socket was created. Its inode number might be reused for the next socket."""
    with suppress(FileNotFoundError):
        return next((path.stat().st_ctime_ns for path in _own_sockets(folder)), None)
    return None


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


def test_later_starts_are_warm_and_a_killed_standby_is_replaced_and_ends_with_the_router(tiny_llama, folder):
    own = {"VCLI_STANDBY": "auto", "XDG_RUNTIME_DIR": str(folder), "TMPDIR": str(folder)}
    with _Server(tiny_llama, "--idle-stop", "1s", environment=own) as server:
        server.wait_stopped()
        wait_until(lambda: _own_sockets(folder), 240)
        assert "warm start" not in server.log
        server.start_warm()
        for mode in ("cold", "warm"):
            assert server.metric("vllm_cli:router_starts_total", outcome="ready", start_mode=mode) >= 1
        entries = json.loads(run_cli("ps", "--json").stdout)
        (listed,) = [each for each in entries if each["port"] == server.port]
        (standby,) = [each for each in entries if each.get("owner_pid") == server.process.pid]
        assert not set(listed["pids"]) & set(standby["pids"]), "it has a line of its own"
        assert standby["memory_bytes"] > 50 << 20

        (process,) = server.children_with("standby")
        before = _created_ns(folder)
        process.kill()
        server.wait_logged("It is started again")
        assert server.ask_model() == 200
        wait_until(lambda: _created_ns(folder) not in (None, before))
        server.terminate(signal.SIGKILL)
    wait_until(lambda: not list(folder.glob("vcli-*/standby-*")))


def test_a_stream_gets_an_error_and_the_next_request_waits_for_the_new_engine(tiny_llama):
    with _Server(tiny_llama, *_COLD, "--restart", "on-failure:99", "--max-wait", "600") as server:
        child = server.child()
        (engine,) = [each for each in child.children(recursive=True) if each.ppid() != child.pid]
        with RawClient(server.port) as client:
            client.post("/v1/completions", _LONG)
            server.wait(lambda: server.metric("vllm:num_requests_running") == 8)
            engine.kill()
            events = client.read().body.decode().strip().split("\n\n")
        assert "error" in json.loads(events[-2].removeprefix("data: "))
        assert server.ask_model() == 200
        assert server.metric("vllm_cli:model_starts_total") == 2
        assert ask(f"{server.url}/health").status == 200


def test_so_many_failures_in_a_row_end_the_server_with_exit_code_1(tiny_llama):
    with _Server(tiny_llama, *_COLD, "--restart", "on-failure:2") as server:
        for _ in range(2):
            server.kill_child()
        assert server.process.wait(60) == 1
        assert "not started again after 2 failures in a row (--restart)" in server.log


@pytest.mark.parametrize("flag", [("--restart", "on-failure:99"), ("--idle-stop", "1h")], ids=" ".join)
def test_a_signal_while_the_model_has_failed_is_no_success(flag, tiny_llama):
    with _Server(tiny_llama, *_COLD, *flag) as server:
        for _ in range(2 if "--restart" in flag else 1):  # only the second failure has a pause before the restart
            server.kill_child()
        server.wait(lambda: ask(f"{server.url}/status.json").json["status"] == "failed")
        assert server.terminate() == 1


_EXEC = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "vllm_cli", "serve", *sys.argv[2:]])
"""


def test_a_router_keeps_the_socket_of_its_service(tiny_llama):
    """The model's server never has the variables of the service manager. The socket outlives this server."""
    arguments = ("--port", "1", "--max-model-len", "256", "--idle-stop", "1s", "--standby", "off")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = subprocess.Popen(
            [sys.executable, "-c", _EXEC, str(listener.fileno()), str(tiny_llama), *arguments],
            env=os.environ | {"LISTEN_FDS": "1"},
            pass_fds=[listener.fileno()],
        )
        url = "http://{}:{}".format(*listener.getsockname())
    try:
        wait_until(lambda: ask(f"{url}/health").headers.get("model-state") == "stopped", timeout_s=240)
        assert ask(f"{url}/v1/completions", {"prompt": "a", "max_tokens": 2}).status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()
