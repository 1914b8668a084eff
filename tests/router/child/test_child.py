"""A model's process ends when its router ends. The tests use real processes, also misbehaving ones."""

import asyncio
import errno
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
import psutil
import pytest
from aiohttp import web

from base.machine.server_ports import list_server_ports
from envs.registry import env
from router import standbys
from router.child import child as child_module
from router.child import server as child_server
from router.child.child import Child, ChildPlace
from router.child.child_process import ChildProcess
from router.child.place import guarded
from router.child.server import ForeignServer
from router.model_entry import ForeignCommand, ModelEntry
from tests.router.conftest import open_places
from tests.router.router_process import FOREIGN_COMMAND, wait_marked
from tests.support.waiting import is_gone, wait_until


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The file to which the relay writes."""
    return tmp_path / "output"


@pytest.fixture
def place(output: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChildPlace]:
    monkeypatch.setenv("VLLM_API_KEY", "sk-of-the-router")
    with open_places(output) as place:
        yield place(None, 1)


def entry_of(*arguments: str, start_timeout_s: float | None = None, **keys: Any) -> ModelEntry:
    command = {"arguments": (*FOREIGN_COMMAND, "${PORT}", *arguments), "address": "http://127.0.0.1:${PORT}"}
    foreign = ForeignCommand(**{"port": None, **command, **keys})
    variables = {"FLAVOUR": "salty", "OWN_PORT": "${PORT}"}
    return ModelEntry(name="m", foreign=foreign, env=variables, start_timeout_s=start_timeout_s)


class Running:
    def __init__(self, child: Child, life: "asyncio.Task[str | None]") -> None:
        self.child = child
        self.life = life

    async def marked(self) -> list[psutil.Process]:
        """The server, its two children, and its orphan in a session of its own."""
        return await asyncio.to_thread(wait_marked, self.child.place.socket_path, 4)

    async def end(self) -> str | None:
        """Asks the child to stop, and waits for its end."""
        self.child.stop()
        return await self.life

    async def get(self, path: str) -> Any:
        async with (
            aiohttp.ClientSession(connector=self.child.connector, connector_owner=False) as session,
            session.get(self.child.base_url + path) as answer,
        ):
            return await answer.json()


async def start(entry: ModelEntry, place: ChildPlace) -> Running:
    child, ready = Child(entry, place), asyncio.Event()
    life = asyncio.create_task(child.run(ready.set))
    async with asyncio.timeout(60):
        await ready.wait()
    return Running(child, life)


@pytest.fixture
async def running(place: ChildPlace) -> AsyncIterator[Running]:
    found = await start(entry_of("has-children"), place)
    yield found
    found.child.kill()
    await found.life


async def test_a_child_that_is_asked_to_stop_leaves_no_process_behind(running):
    marked = await running.marked()
    assert await running.end() is None
    assert all(is_gone(process.pid) for process in marked)


async def test_a_child_that_crashes_tells_how_and_leaves_no_process_behind(running, monkeypatch):
    monkeypatch.setattr(child_module, "_AFTER_CRASH_S", 0.1)
    marked = await running.marked()
    os.kill(running.child.pids[0], signal.SIGKILL)
    assert await running.life == "The server was ended by SIGKILL."
    assert await running.child.end_reason() == "The server was ended by SIGKILL."
    assert all(is_gone(process.pid) for process in marked)


def test_a_standby_gets_none_of_the_routers_secrets(monkeypatch, tmp_path):
    given: dict[str, str] = {}

    class Process:
        def __init__(self, arguments: list[str], env: dict[str, str], **_: Any) -> None:
            given.update(env, arguments=" ".join(arguments))

        def terminate(self) -> None:
            pass

        def wait(self, timeout_s: float) -> None:
            pass

    monkeypatch.setenv("VLLM_API_KEY", "sk-of-the-router")
    monkeypatch.setattr(standbys.subprocess, "Popen", Process)
    monkeypatch.setattr(standbys, "_is_served", lambda kind: False)
    standby = standbys.OwnStandby("embedded", lambda: None, tmp_path)
    asyncio.run(standby.tend())
    standby.close()
    assert "standby --for embedded" in given["arguments"]
    assert env.VLLM_API_KEY.name not in given


async def test_a_model_on_a_file_system_that_hangs_does_not_hold_the_event_loop(monkeypatch, tmp_path):
    monkeypatch.setattr(standbys, "_is_served", lambda kind: False)
    may_go_on = threading.Event()
    standby = standbys.OwnStandby("embedded", lambda: str(may_go_on.wait()), tmp_path)
    tending = asyncio.create_task(standby.tend())
    await asyncio.sleep(0.01)
    assert not tending.done()
    standby.close()
    may_go_on.set()
    await tending
    assert standby.variables == {}, "it is not needed any more"


async def test_a_child_gets_its_own_variables_and_none_of_the_routers_secrets(running):
    variables = (await running.get("/env"))["variables"]
    assert variables["FLAVOUR"] == "salty"
    assert running.child.base_url.endswith(f":{variables['OWN_PORT']}")
    assert env.VLLM_API_KEY.name not in variables


async def test_a_command_that_never_listens_is_ended_after_its_time(place):
    script = "echo loading for ever; exec sleep 600"  # no interpreter, whose start may take longer
    child = Child(entry_of(arguments=("sh", "-c", script), start_timeout_s=1.0), place)
    reason = await child.run(lambda: None)
    assert reason.startswith("The start took longer than 1 s")
    assert "loading for ever" in reason
    assert reason.endswith("Code: VC-STARTUP-TIMEOUT")
    assert is_gone(child.pids[0])


async def test_a_start_of_ours_that_does_not_end_is_killed_soon(place, tiny_llama, monkeypatch):
    monkeypatch.setattr(child_server, "ERRORS_S", 0.2)
    child = Child(ModelEntry(name="m", arguments=(str(tiny_llama),)), place)
    life = asyncio.create_task(child.run(lambda: None))
    while not child.pids:
        await asyncio.sleep(0.01)
    psutil.Process(child.pids[0]).suspend()
    await asyncio.to_thread(wait_until, lambda: psutil.Process(child.pids[0]).status() == psutil.STATUS_STOPPED)
    child.stop()
    assert await asyncio.wait_for(asyncio.shield(life), 20) is None
    assert is_gone(child.pids[0])


async def test_a_server_that_hangs_is_no_usual_end_although_it_is_to_stop(place):
    """A hung server may be ended at once, because its requests have ended with its engine."""
    body = {"status": "ready"}

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.json_response(body, status=503 if body["status"] == "hung" else 200)

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.UnixSite(runner, place.socket_path).start()
    found = await start(ModelEntry(name="m"), place)  # without arguments, it is a server that runs already
    body.update(status="hung", error={"message": "The engine hangs: it was silent"})
    assert await found.end() == "The server hangs. The engine hangs: it was silent."
    await runner.cleanup()


async def test_a_stop_before_the_first_turn_starts_nothing(place):
    child = Child(entry_of(), place)
    life = asyncio.create_task(child.run(lambda: None))
    child.stop()
    assert await life is None
    assert not child.pids


async def test_a_port_of_another_process_is_an_error_and_not_its_server(place):
    found = await start(entry_of(), place)
    port = int(found.child.base_url.rpartition(":")[2])
    reason = await Child(entry_of(port=port), place).run(lambda: None)
    await found.end()
    text = f"Another process listens on http://127.0.0.1:{port}: end it, or leave out cmd to use it."
    assert reason == f"{text} Code: VC-PORT-IN-USE"


async def test_no_client_of_this_machine_can_get_the_port_of_a_command_that_is_still_starting():
    foreign = entry_of().foreign
    assert foreign is not None
    servers = [ForeignServer(foreign, {}) for _ in range(50)]
    for server in servers:
        await server.connector.close()
    ports = {int(server.base_url.rpartition(":")[2]) for server in servers}
    assert ports <= set(list_server_ports()) or 0 in list_server_ports()


async def test_a_server_that_runs_already_is_used_and_not_stopped(place):
    found = await start(entry_of(), place)
    other = await start(entry_of(arguments=(), address=found.child.base_url), place)
    assert (await other.get("/env"))["variables"]["FLAVOUR"] == "salty"
    assert await other.end() is None
    assert (await found.get("/env"))["variables"]
    await found.end()


async def test_the_answer_of_its_check_endpoint_is_the_reason(place):
    """The server already runs, because an interpreter may start too late. The query may contain a secret."""
    found = await start(entry_of(), place)
    port = int(found.child.base_url.rpartition(":")[2])
    check = {"check_endpoint": "/${PORT}?status=404", "start_timeout_s": 1.0}
    reason = await Child(entry_of(arguments=(), port=port, **check), place).run(lambda: None)
    await found.end()
    assert reason is not None
    assert f"its last phase was /{port} (checkEndpoint) answers 404" in reason


async def test_a_start_without_a_free_descriptor_leaves_no_process(place, monkeypatch):
    pids = []

    def fail(pid: int) -> int:
        pids.append(pid)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", fail)
    reason = await Child(entry_of(), place).run(lambda: None)
    assert reason is not None
    assert "cannot be started: [Errno 24] Too many open files. Code: VC-PROGRAM-NOT-STARTED" in reason
    assert is_gone(pids[0])


def test_a_group_of_another_user_is_no_error(monkeypatch):
    def refuse(pid: int, number: int) -> None:
        raise PermissionError(pid, number)

    monkeypatch.setattr(os, "killpg", refuse)
    monkeypatch.setattr(os, "kill", refuse)
    ChildProcess(os.getpid()).signal_group(signal.SIGTERM)
    ChildProcess(os.getpid()).signal(signal.SIGTERM)


async def test_a_program_that_cannot_be_executed_is_named(place, tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    reason = await Child(entry_of(arguments=(str(program),)), place).run(lambda: None)
    assert f"{program} cannot be executed: No such file or directory" in str(reason)
    assert str(reason).endswith("Code: VC-PROGRAM-NOT-STARTED")


async def test_a_command_without_an_endpoint_is_ready_when_it_listens_and_its_stop_command_gets_the_pid(
    place, tmp_path
):
    told = tmp_path / "told"
    script = f"echo $0 > {told}; kill -TERM $0"
    found = await start(entry_of(check_endpoint="none", stop_words=("sh", "-c", script, "${PID}")), place)
    assert await found.end() is None
    assert told.read_text().strip() == str(found.child.pids[0])


@pytest.mark.thorough
async def test_a_hundred_megabytes_of_output_are_relayed_in_bounded_memory(place, output):
    before = psutil.Process().memory_info().rss
    found = await start(entry_of("prints"), place)
    grown = psutil.Process().memory_info().rss - before
    assert await found.end() is None
    assert grown < 64 << 20
    assert output.read_bytes().startswith(b"[m] 0 xxx")


@pytest.fixture
def told() -> Iterator[socket.socket]:
    """The socket on which an event loop of this process would receive the process's signals."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        handler = signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(theirs.fileno())
        yield ours
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, handler)


def sleep() -> NoReturn:
    os.execv(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(600)"])


@pytest.mark.thorough
def test_a_signal_to_a_new_process_ends_it_and_is_not_taken_for_one_of_its_parent(told):
    for _ in range(10):
        process = ChildProcess.fork(sleep)
        assert os.getpgid(process.pid) == process.pid
        process.signal(signal.SIGTERM)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process.poll() == -signal.SIGTERM
    with pytest.raises(BlockingIOError):
        told.recv(1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_right_after_the_fork_does_not_end_the_guard(number, tmp_path, monkeypatch):
    """The signal goes to the router's process group. The guard is in this group until it calls `setsid`."""
    folder = tmp_path / "places"
    folder.mkdir()
    setsid = os.setsid

    def signal_then_leave() -> None:
        os.kill(os.getpid(), number)
        setsid()

    monkeypatch.setattr(os, "setsid", signal_then_leave)
    with guarded(str(folder)):
        pass
    assert not folder.exists()
