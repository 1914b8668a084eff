"""The engine's end in every state of the lifecycle, and the drain. Real servers: `e2e/test_shutdown.py`."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from base.lifecycle import Lifecycle
from base.server_settings import LifecycleConfig
from server.engine.engine_process import BlockingChannel
from server.engine.process_link.client import EngineClient
from server.engine.process_link.messages import Failed, Ready
from server.operation import admission, drain
from server.operation.admission import RunningRequests
from server.operation.drain import Drain
from server.operation.engine_monitor import EngineMonitor, PingedEngine
from server.operation.engine_watchdog import EngineWatchdog
from tests.server.operation.test_engine_watchdog import FakeProcesses
from tests.server.server_config import INFO

WATCHDOG_S = 0.05
STATES = pytest.mark.parametrize("state", ["starting", "ready", "draining"])


class FakeProcess:
    """A fake engine process. No method blocks."""

    connection: Any = None
    end: str | None = None
    has_begun_to_end = False

    def is_exiting(self) -> bool:
        return self.has_begun_to_end

    def describe_end(self) -> str | None:
        return self.end


class Monitored:
    """A monitor, the client that it watches, and the engine's end of the client's connection."""

    def __init__(self, ours: socket.socket, theirs: socket.socket) -> None:
        self.lifecycle = Lifecycle()
        self.client = EngineClient(ours, self.lifecycle.engine_ended)
        self.engine = BlockingChannel(theirs)
        self.process = FakeProcess()
        self.processes = FakeProcesses()
        engine = PingedEngine(self.client, self.lifecycle, RunningRequests())
        watchdog = EngineWatchdog(engine, self.processes, engine, timeout_s=WATCHDOG_S)
        self.monitor = EngineMonitor(self.client, self.process, self.lifecycle, watchdog)

    async def enter(self, state: str) -> None:
        """Changes the lifecycle from `starting` to this state."""
        if state != "starting":
            self.engine.send(msgspec.msgpack.encode(Ready(INFO)))
            await self.client.wait_loaded(60)
            self.lifecycle.engine_ready()
        if state == "draining":
            self.lifecycle.drain()

    async def run(self) -> None:
        await asyncio.wait_for(self.monitor.run(), 60)


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
async def one(sockets: tuple[socket.socket, socket.socket]) -> AsyncIterator[Monitored]:
    one = Monitored(*sockets)
    await one.client.start()
    yield one
    await one.client.close()
    one.engine._reader.close()


@STATES
async def test_an_engine_that_ends_leaves_a_dead_server_with_its_own_reason(one, state):
    await one.enter(state)
    one.engine.send(msgspec.msgpack.encode(Failed("out of memory")))
    await one.run()
    assert (one.lifecycle.state, one.lifecycle.reason) == ("dead", "out of memory")


async def test_silent_end_is_described_by_the_kernel_s_report(one, sockets):
    await one.enter("ready")
    sockets[1].shutdown(socket.SHUT_RDWR)
    running = asyncio.create_task(one.run())
    await one.client.dead.wait()
    assert one.lifecycle.reason == "the engine process ended unexpectedly"
    one.process.end = "killed by SIGKILL"
    await running
    assert one.lifecycle.reason == "killed by SIGKILL"


@STATES
async def test_process_that_is_ending_is_detected_by_the_next_poll(one, state):
    await one.enter(state)
    one.monitor.poll()
    assert one.lifecycle.state == state
    one.process.has_begun_to_end = True
    one.monitor.poll()
    assert (one.lifecycle.state, one.lifecycle.reason) == ("dead", "its process is ending")
    one.lifecycle.engine_ended("killed by SIGKILL")
    one.monitor.poll()
    assert one.lifecycle.reason == "killed by SIGKILL"


async def test_watchdog_gives_up_a_silent_engine_once_it_has_loaded(one):
    running = asyncio.create_task(one.run())
    await asyncio.sleep(6 * WATCHDOG_S)
    assert (one.lifecycle.state, one.processes.reasons) == ("starting", [])
    await one.enter("ready")
    await running
    assert one.lifecycle.reason.startswith("it was silent for 0.05 s (--engine-watchdog-timeout): since ")
    assert (one.lifecycle.state, one.lifecycle.is_hung) == ("dead", True)
    assert one.processes.reasons == [one.lifecycle.reason]


GRACE_S = 5.0


async def test_a_long_grace_ends_with_quiet_too(monkeypatch):
    """A client that sends requests to the end of the grace gets its last 503 before the port closes."""
    running, now_s = RunningRequests(), 1e6

    async def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds
        if now_s < 1e6 + GRACE_S:
            running.note_rejection()

    clock = SimpleNamespace(monotonic=lambda: now_s)
    monkeypatch.setattr(drain, "asyncio", SimpleNamespace(sleep=sleep, Event=asyncio.Event))
    monkeypatch.setattr(drain, "time", clock)
    monkeypatch.setattr(admission, "time", clock)
    config = LifecycleConfig(drain_grace_s=GRACE_S)
    await Drain(Lifecycle(), running, lambda message: None, config, lambda: None).run()
    assert running.quiet_s >= drain._QUIET_S
    assert now_s < 1e6 + GRACE_S + drain._QUIET_S + 2 * drain._POLL_S


async def test_running_requests_are_waited_for():
    running = RunningRequests()
    assert await running.wait_idle(0.01)
    with running.hold():
        assert not await running.wait_idle(0.01)
        waiting = asyncio.create_task(running.wait_idle(100))
        await asyncio.sleep(0)
        assert not waiting.done()
    assert await waiting
