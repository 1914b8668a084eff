"""Each process of a warm start is killed in each phase. The others end or continue, and nothing is left."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import psutil
import pytest

from tests.e2e.server_process import ServerProcess
from tests.e2e.stop_point import ENGINE_LOADS, StopPoint
from tests.support.cli import run_cli
from tests.support.http_client import ask
from tests.support.marks import slow_but_for
from tests.support.ports import free_port
from tests.support.standby_process import StandbyProcess
from tests.support.waiting import is_gone, wait_until

FORK_TAKES_OVER: Final = ("os.chdir", "", None)
"""The forked process has reported to the front process that it works, and has read the request."""

_STOP_BEFORE_GO: Final = """
import os, signal, sys
from startup.processes import messages
send = messages.send
def stop_at_go(connection, *sections, **options):
    if sections == ([b"go"],):
        os.kill(os.getpid(), signal.SIGSTOP)
    send(connection, *sections, **options)
messages.send = stop_at_go
from vllm_cli.__main__ import main
sys.exit(main())
"""


class _Start(NamedTuple):
    """A start in some phase, and its processes."""

    standby: StandbyProcess
    environment: Mapping[str, str]
    front: "subprocess.Popen[bytes]"
    port: int
    server: psutil.Process
    stopped: psutil.Process | None
    """The process that has stopped itself, so that the start stays in this phase."""

    def victim(self, role: str) -> psutil.Process:
        match role:
            case "front":
                return psutil.Process(self.front.pid)
            case "server":
                return self.server
            case "engine":
                return self.standby.wait_engine()
            case "forkserver":
                parent = self.standby.wait_engine().parent()
                assert parent is not None
                return parent
            case "template":
                return self.standby.template()
            case _:
                return psutil.Process(self.standby.process.pid)

    def resume(self) -> None:
        if self.stopped is not None:
            with suppress(psutil.NoSuchProcess):
                self.stopped.resume()


class _Stopping(NamedTuple):
    """A standby whose starts stop in one phase."""

    phase: str
    standby: StandbyProcess
    stop: StopPoint | None
    """Where the starts stop. None means that they become ready."""

    @contextmanager
    def start(self, model: Path) -> Iterator[_Start]:
        """Yields a start that has reached the phase."""
        environment = self.standby.environment
        if self.stop is not None:
            self.stop.rearm()
            environment |= self.stop.environment
        with ServerProcess([str(model)], wait=self.stop is None, environment=environment) as server:
            stopped = self.stop.wait_stopped() if self.stop else None
            wait_until(lambda: len(self.standby.servers()) == 1)
            (forked,) = self.standby.servers()
            yield _Start(self.standby, environment, server.process, server.port, forked, stopped)


@contextmanager
def _stopping(folder: Path, phase: str) -> Iterator[_Stopping]:
    point = {"take-over": FORK_TAKES_OVER, "load": ENGINE_LOADS}.get(phase)
    stop = StopPoint(folder, *point) if point else None
    with StandbyProcess(environment=stop.environment if stop else None) as standby:
        yield _Stopping(phase, standby, stop)


@pytest.fixture(scope="module")
def stopping(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Stopping]:
    """A standby for all tests of a phase that do not kill the standby."""
    with _stopping(tmp_path_factory.mktemp("phase"), request.param) as own:
        yield own


@pytest.mark.parametrize(
    ("stopping", "role"),
    [
        ("ready", "engine"),
        ("load", "front"),
        *(pytest.param("ready", role, marks=pytest.mark.slow) for role in ("front", "server", "forkserver")),
        *(pytest.param("load", role, marks=pytest.mark.slow) for role in ("server", "engine", "forkserver")),
        *(pytest.param("take-over", role, marks=pytest.mark.slow) for role in ("front", "server")),
    ],
    indirect=["stopping"],
)
def test_the_start_ends_with_a_process_of_it(stopping, role, tiny_llama):
    with stopping.start(tiny_llama) as start:
        template = start.standby.template()
        family = [psutil.Process(start.front.pid), start.server, *start.server.children(recursive=True)]
        start.victim(role).kill()
        start.resume()
        code = start.front.wait(60)
        wait_until(lambda: all(is_gone(process.pid) for process in family))
        start.standby.wait_no_server()
        assert start.standby.template().pid == template.pid
        if role in ("front", "server") and stopping.phase != "take-over":
            assert code == -signal.SIGKILL
        else:
            assert code in ({1, 3} if role != "front" else {-signal.SIGKILL})
        _assert_next_start_is_warm(start.environment, tiny_llama)


@pytest.mark.parametrize("phase", slow_but_for(["ready", "load", "take-over"], "load"))
def test_a_server_outlives_what_it_was_forked_from(phase, tiny_llama, tmp_path):
    """The template process of one start is killed, and the standby of another start."""
    with _stopping(tmp_path, phase) as own:
        for role in ("template", "standby"):
            with own.start(tiny_llama) as start:
                template = start.standby.template()
                family = [psutil.Process(start.front.pid), start.server, *start.server.children(recursive=True)]
                start.victim(role).kill()
                start.resume()
                url = f"http://127.0.0.1:{start.port}/health"
                wait_until(lambda url=url, front=start.front: ask(url).status == 200 or front.poll() is not None)
                assert start.front.poll() is None
                family += start.server.children(recursive=True)
                if role == "template":
                    old = (None, template.pid)
                    wait_until(lambda old=old: own.standby.status()["templates"][0]["pid"] not in old)
                    own.standby.wait_ready(after_kill=True)
                    _assert_next_start_is_warm(start.environment, tiny_llama)
                start.front.send_signal(signal.SIGTERM)
                assert start.front.wait(60) == 0
                wait_until(lambda family=family: all(is_gone(process.pid) for process in family))
        wait_until(lambda: is_gone(template.pid))


def _assert_next_start_is_warm(environment: Mapping[str, str], model: Path) -> None:
    done = run_cli("serve", model, "--preflight-only", "--port", free_port(), environment=environment)
    assert done.returncode == 0, done.stderr


@contextmanager
def _start_that_stops_before_it_agrees(standby: StandbyProcess, model: Path) -> Iterator[_Start]:
    """Yields a start whose front process stops before it agrees to the fork.

    The forked process is ready to be the server. It does nothing visible before the agreement.
    """
    port = free_port()
    arguments = [sys.executable, "-c", _STOP_BEFORE_GO, "serve", str(model), "--port", str(port)]
    with subprocess.Popen(arguments, env={**os.environ, **standby.environment}, stderr=subprocess.PIPE) as front:
        stopped = psutil.Process(front.pid)
        wait_until(lambda: stopped.status() == psutil.STATUS_STOPPED)
        (forked,) = standby.servers()
        yield _Start(standby, standby.environment, front, port, forked, stopped)


@pytest.mark.parametrize("role", ["front", "server"])
def test_a_kill_before_the_front_process_agrees(role, tiny_llama, standby):
    template = standby.template()
    standby.wait_no_server()
    num_fds = template.num_fds()
    with _start_that_stops_before_it_agrees(standby, tiny_llama) as start:
        start.victim(role).kill()
        if role == "server":  # until the template has closed the connection, the front process could still agree
            wait_until(lambda: template.num_fds() <= num_fds)
        start.resume()
        _, errors = start.front.communicate(timeout=60)
        wait_until(lambda: is_gone(start.server.pid))
        if role == "front":
            assert start.front.returncode == -signal.SIGKILL
        else:
            assert start.front.returncode == 3
            assert b"--standby require: the standby has not forked a server: " in errors
    standby.wait_no_server()
    _assert_next_start_is_warm(standby.environment, tiny_llama)
