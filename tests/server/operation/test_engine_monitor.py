"""The engine's end in every state of the lifecycle, and the steps to readiness, with fakes."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from base.errors import EngineStartError
from base.lifecycle import Lifecycle
from server.operation.admission import RunningRequests
from server.operation.engine_monitor import EngineMonitor, PingedEngine, make_ready
from server.operation.engine_watchdog import EngineWatchdog
from server.terms.types import EngineInfo, EngineOutput, EngineStats
from tests.server.operation.fake_processes import FakeProcesses


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


class Recorded:
    """Fakes of engine, renderer and metrics that record the order of calls."""

    def __init__(self, *, error: str | None = None, dies: bool = False) -> None:
        self.calls: list[str] = []
        self.info = SimpleNamespace(pooling=None, max_model_len=8)
        self.error: str | None = None
        self.pools = SimpleNamespace(run=self._run_in_pool)
        self.prompts = SimpleNamespace(render=self._render)
        self.stats = EngineStats()
        self._output_error = error
        self._dies = dies

    async def wait_loaded(self, timeout_s: float) -> Any:
        self.calls.append(f"wait {timeout_s:g}")
        return self.info

    def configure(self, info: Any) -> None:
        assert info is self.info
        self.calls.append("configure")

    def register_engine(self, info: Any, read_stats: Any) -> None:
        assert info is self.info
        assert read_stats() is self.stats
        self.calls.append("register")

    async def _run_in_pool(self, func: Any, *args: Any) -> Any:
        return func(*args)

    def _render(self, text: str, options: Any) -> Any:
        self.calls.append("render")
        return SimpleNamespace(token_ids=[1])

    def create_detokenizer(self) -> Any:
        return SimpleNamespace(append=lambda token_ids: self.calls.append(f"append {token_ids}"))

    async def generate(self, request_id: str, prompts: Any) -> Any:
        self.calls.append("generate")
        yield EngineOutput(request_id=request_id, token_ids=[7], finish_reason="length", error=self._output_error)
        if self._dies:
            self.error = "killed"

    @contextmanager
    def span(self, name: str, **options: Any) -> Iterator[None]:
        self.calls.append(f"begin {name}")
        yield
        self.calls.append(f"end {name}")


async def _make_ready(recorded: Any) -> EngineInfo:
    parts: Any = SimpleNamespace(engine=recorded, renderer=recorded, metrics=recorded)
    return await make_ready(parts, recorded.span, timeout_s=5)


async def test_renderer_and_metrics_are_configured_before_the_first_token():
    recorded = Recorded()
    assert await _make_ready(recorded) is recorded.info
    assert recorded.calls == [
        "begin wait_for_engine",
        "wait 5",
        "end wait_for_engine",
        "configure",
        "register",
        "begin first_token",
        "render",
        "generate",
        "append [7]",
        "end first_token",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"error": "no memory"}, "the first token could not be generated: no memory"), ({"dies": True}, "killed")],
    ids=["the token fails", "the engine dies after its token"],
)
async def test_engine_without_a_first_token_is_not_ready(options, message):
    with pytest.raises(EngineStartError, match=message):
        await _make_ready(Recorded(**options))
