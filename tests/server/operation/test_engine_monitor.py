"""The engine's end in every state of the lifecycle. The engine's messages are real, its process is a fake."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest

from base.lifecycle import Lifecycle
from server.engine.process import BlockingChannel
from server.engine.process_link.client import EngineClient
from server.engine.process_link.messages import Failed, Ready
from server.operation.admission import RunningRequests
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
