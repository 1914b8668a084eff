"""The engine's end in every state of the lifecycle, and the steps to readiness, with fakes."""

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from base.errors import EngineStartError
from base.lifecycle import Lifecycle
from server.operation.admission import RunningRequests
from server.operation.engine_monitor import EngineMonitor, PingedEngine, make_ready
from server.operation.engine_watchdog import EngineWatchdog
from server.terms.types import EngineOutput, EngineStats
from tests.server.operation.test_engine_watchdog import FakeProcesses


class FakeClient:
    """A fake engine client with the methods that the monitor uses."""

    def __init__(self, on_death: Callable[[str], None]) -> None:
        self._on_death = on_death
        self.dead = asyncio.Event()
        self.error: str | None = None
        self.ended_silently = False
        self.has_received = False
        self.num_pings = 0
        self.info = SimpleNamespace(device="cpu")

    def ping(self) -> None:
        self.num_pings += 1

    def die(self, reason: str, *, silently: bool = False) -> None:
        self.ended_silently = silently
        self.give_up(reason)

    def give_up(self, reason: str) -> None:
        if self.error is None:
            self.error = reason
            self.dead.set()
            self._on_death(reason)


class FakeProcess:
    """A fake engine process. No method blocks."""

    connection: Any = None

    def __init__(self) -> None:
        self.end: str | None = None
        self.has_begun_to_end = False

    def is_exiting(self) -> bool:
        return self.has_begun_to_end

    def describe_end(self) -> str | None:
        return self.end


class Monitored:
    """A monitor of a fake engine client and process."""

    def __init__(self, watchdog_timeout_s: float = 0.0) -> None:
        self.lifecycle = Lifecycle()
        self.client: Any = FakeClient(self.lifecycle.engine_ended)
        self.process = FakeProcess()
        self.processes = FakeProcesses()
        engine = PingedEngine(self.client, self.lifecycle, RunningRequests())
        watchdog = EngineWatchdog(engine, self.processes, engine, timeout_s=watchdog_timeout_s)
        self.monitor = EngineMonitor(self.client, self.process, self.lifecycle, watchdog)

    def enter(self, state: str) -> None:
        """Changes the lifecycle from `starting` to this state."""
        if state != "starting":
            self.lifecycle.engine_ready()
        if state == "draining":
            self.lifecycle.drain()


async def _run(monitored: Monitored) -> None:
    await asyncio.wait_for(monitored.monitor.run(), 60)


@pytest.mark.parametrize("state", ["starting", "ready", "draining"])
async def test_an_engine_that_ends_leaves_a_dead_server_with_its_own_reason(state):
    one = Monitored()
    one.enter(state)
    one.client.die("out of memory")
    await _run(one)
    assert (one.lifecycle.state, one.lifecycle.reason) == ("dead", "out of memory")


async def test_silent_end_is_described_by_the_kernel_s_report():
    one = Monitored()
    one.lifecycle.engine_ready()
    one.client.die("it ended unexpectedly", silently=True)
    running = asyncio.create_task(_run(one))
    await asyncio.sleep(0.02)
    assert one.lifecycle.reason == "it ended unexpectedly"
    one.process.end = "killed by SIGKILL"
    await running
    assert one.lifecycle.reason == "killed by SIGKILL"


@pytest.mark.parametrize("state", ["starting", "ready", "draining"])
async def test_process_that_is_ending_is_detected_by_the_next_poll(state):
    one = Monitored()
    one.enter(state)
    one.monitor.poll()
    assert one.lifecycle.state == state
    one.process.has_begun_to_end = True
    one.monitor.poll()
    assert (one.lifecycle.state, one.lifecycle.reason) == ("dead", "its process is ending")
    one.lifecycle.engine_ended("killed by SIGKILL")
    one.monitor.poll()
    assert one.lifecycle.reason == "killed by SIGKILL"


async def test_watchdog_gives_up_an_engine_that_sends_nothing():
    one = Monitored(watchdog_timeout_s=0.05)
    one.lifecycle.engine_ready()
    await _run(one)
    assert one.lifecycle.reason.startswith("it was silent for 0.05 s (--engine-watchdog-timeout): since ")
    assert (one.lifecycle.state, one.lifecycle.is_hung) == ("dead", True)
    assert one.processes.reasons == [one.lifecycle.reason]


async def test_watchdog_does_not_bound_the_loading():
    one = Monitored(watchdog_timeout_s=0.05)
    running = asyncio.create_task(_run(one))
    await asyncio.sleep(0.3)
    assert (one.lifecycle.state, one.processes.reasons) == ("starting", [])
    running.cancel()


class Answering:
    """Fakes of engine, renderer and metrics: the engine answers with a token or an error, or dies."""

    info = SimpleNamespace(pooling=None, max_model_len=8)
    error: str | None = None
    stats = EngineStats()

    def __init__(self, *, error: str | None = None, dies: bool = False) -> None:
        self.pools = SimpleNamespace(run=self._run_in_pool)
        self._output_error = error
        self._dies = dies

    async def wait_loaded(self, timeout_s: float) -> Any:
        return self.info

    def configure(self, info: Any) -> None:
        self.prompts = SimpleNamespace(render=lambda *_: SimpleNamespace(token_ids=[1]))

    def register_engine(self, info: Any, read_stats: Any) -> None:
        pass

    async def _run_in_pool(self, func: Any, *args: Any) -> Any:
        return func(*args)

    def create_detokenizer(self) -> Any:
        return SimpleNamespace(append=lambda token_ids: None)

    async def generate(self, request_id: str, prompts: Any) -> Any:
        yield EngineOutput(request_id=request_id, token_ids=[7], finish_reason="length", error=self._output_error)
        if self._dies:
            self.error = "killed"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"error": "no memory"}, "the first token could not be generated: no memory"), ({"dies": True}, "killed")],
    ids=["the token fails", "the engine dies after its token"],
)
async def test_engine_without_a_first_token_is_not_ready(options, message):
    fake: Any = Answering(**options)
    parts: Any = SimpleNamespace(engine=fake, renderer=fake, metrics=fake)
    with pytest.raises(EngineStartError, match=message):
        await make_ready(parts, lambda *_, **__: nullcontext(), timeout_s=5)
