"""The engine's end in every state of the lifecycle, with fakes; the steps to readiness."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from base.errors import EngineStartError
from base.lifecycle import Lifecycle, State
from server.operation.engine_monitor import EngineMonitor, EngineReadiness
from server.types import EngineOutput, EngineStats


class FakeClient:
    """The engine client, as far as the monitor uses it."""

    def __init__(self, on_death: Callable[[str], None]) -> None:
        self._on_death = on_death
        self.dead = asyncio.Event()
        self.error: str | None = None
        self.ended_silently = False
        self.has_received = False
        self.num_pings = 0

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

    async def restart(self, connection: Any) -> None:
        self.error, self.ended_silently = None, False
        self.dead.clear()


class FakeProcess:
    """The engine's process; nothing blocks."""

    connection: Any = None

    def __init__(self) -> None:
        self.end: str | None = None
        self.has_begun_to_end = False
        self.num_kills = 0
        self.num_starts = 1

    def is_exiting(self) -> bool:
        return self.has_begun_to_end

    def describe_end(self) -> str | None:
        return self.end

    def kill(self) -> None:
        self.num_kills += 1

    def close(self) -> None: ...

    def begin_restart(self) -> None:
        self.num_starts += 1

    def end_restart(self) -> None: ...

    def abandon_restart(self) -> None: ...


class FakeReadiness:
    """Succeeds, or fails with the reasons given, one per attempt."""

    timeout_s = 60.0

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.may_return = asyncio.Event()
        self.may_return.set()

    async def wait(self) -> None:
        await self.may_return.wait()
        if self.failures:
            raise EngineStartError(self.failures.pop(0))


class Monitored:
    """A monitor with its fakes."""

    def __init__(self, num_restarts: int = 0, watchdog_timeout_s: float = 0.0) -> None:
        self.lifecycle = Lifecycle(num_restarts=num_restarts)
        self.client = FakeClient(self.lifecycle.engine_ended)
        self.process = FakeProcess()
        self.readiness = FakeReadiness()
        self.restarts: list[int] = []
        self.monitor = EngineMonitor(
            self.client,  # type: ignore[arg-type]
            self.process,
            self.lifecycle,
            self.readiness,  # type: ignore[arg-type]
            watchdog_timeout_s=watchdog_timeout_s,
            on_restart=lambda: self.restarts.append(self.lifecycle.num_restarts_left),
        )

    async def wait_state(self, state: State) -> None:
        async with asyncio.timeout(60):
            while self.lifecycle.state != state:
                await asyncio.sleep(0.001)


async def _run(monitored: Monitored) -> None:
    await asyncio.wait_for(monitored.monitor.run(), 60)


@pytest.mark.parametrize(("state", "num_restarts"), [("ready", 0), ("starting", 3), ("draining", 3)])
async def test_engine_that_is_not_restarted_leaves_a_dead_server_with_its_own_reason(state, num_restarts):
    one = Monitored(num_restarts)
    if state != "starting":
        one.lifecycle.engine_ready()
    if state == "draining":
        one.lifecycle.drain()
    one.client.die("out of memory")
    await _run(one)
    assert (one.lifecycle.state, one.lifecycle.reason, one.restarts) == ("dead", "out of memory", [])


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


async def test_engine_that_dies_is_restarted_once_per_restart_left():
    one = Monitored(num_restarts=2)
    one.lifecycle.engine_ready()
    running = asyncio.create_task(_run(one))
    for num_left in (1, 0):
        one.client.die("gone")
        assert one.lifecycle.state == "restarting"
        await one.wait_state("ready")
        assert one.lifecycle.num_restarts_left == num_left
    one.client.die("gone for good")
    await running
    assert (one.lifecycle.state, one.lifecycle.reason) == ("dead", "gone for good")
    assert (one.restarts, one.process.num_starts) == ([1, 0], 3)


async def test_restart_that_fails_is_repeated_until_none_is_left():
    one = Monitored(num_restarts=2)
    one.readiness.failures = ["no memory", "still no memory"]
    one.lifecycle.engine_ready()
    one.client.die("gone")
    await _run(one)
    assert (one.lifecycle.state, one.lifecycle.reason) == ("dead", "still no memory")
    assert one.restarts == [1, 0]


@pytest.mark.parametrize("failures", [[], ["no memory"]], ids=["restart succeeds", "restart fails"])
async def test_server_that_drains_during_a_restart_is_dead_only_if_the_restart_fails(failures):
    one = Monitored(num_restarts=2)
    one.readiness.failures = list(failures)
    one.readiness.may_return.clear()
    one.lifecycle.engine_ready()
    one.client.die("gone")
    running = asyncio.create_task(_run(one))
    while not one.restarts:
        await asyncio.sleep(0.001)
    one.lifecycle.drain()
    assert one.lifecycle.state == "draining"
    one.readiness.may_return.set()
    if failures:
        await running
        assert (one.lifecycle.state, one.lifecycle.reason) == ("dead", "no memory")
    else:
        while not one.lifecycle.has_engine:
            await asyncio.sleep(0.001)
        assert one.lifecycle.state == "draining"
        one.client.die("gone again")
        await running
        assert one.lifecycle.state == "dead"
    assert one.restarts == [1]


@pytest.mark.parametrize(
    ("state", "num_restarts", "following"),
    [
        ("starting", 1, "dead"),
        ("ready", 0, "dead"),
        ("ready", 1, "restarting"),
        ("draining", 1, "dead"),
    ],
)
async def test_process_that_is_ending_is_detected_by_the_next_poll(state, num_restarts, following):
    one = Monitored(num_restarts=num_restarts)
    if state == "ready":
        one.lifecycle.engine_ready()
    if state == "draining":
        one.lifecycle.drain()
    one.monitor.poll()
    assert one.lifecycle.state == state
    one.process.has_begun_to_end = True
    one.monitor.poll()
    assert (one.lifecycle.state, one.lifecycle.reason) == (following, "its process is ending")
    assert not one.restarts, "the restart waits until the connection is closed"
    one.lifecycle.engine_ended("killed by SIGKILL")
    one.monitor.poll()
    assert one.lifecycle.reason == "killed by SIGKILL"


async def test_process_is_not_polled_during_a_restart():
    one = Monitored(num_restarts=1)
    one.readiness.may_return.clear()
    one.lifecycle.engine_ready()
    one.client.die("gone")
    running = asyncio.create_task(_run(one))
    while not one.restarts:
        await asyncio.sleep(0.001)
    one.lifecycle.drain()
    one.process.has_begun_to_end = True
    one.monitor.poll()
    assert one.lifecycle.state == "draining"
    running.cancel()


async def test_watchdog_gives_up_an_engine_that_sends_nothing():
    one = Monitored(watchdog_timeout_s=0.05)
    one.lifecycle.engine_ready()
    await _run(one)
    assert one.lifecycle.reason == "it was silent for 0.05 s (--engine-watchdog-timeout) and has been killed"
    assert (one.lifecycle.state, one.process.num_kills) == ("dead", 1)


async def test_watchdog_does_not_bound_the_loading():
    one = Monitored(watchdog_timeout_s=0.05)
    running = asyncio.create_task(_run(one))
    await asyncio.sleep(0.3)
    assert (one.lifecycle.state, one.process.num_kills) == ("starting", 0)
    running.cancel()


class Recorded:
    """Fakes of engine, renderer, metrics and adapters that record the order of calls."""

    def __init__(self, *, error: str | None = None, dies: bool = False) -> None:
        self.calls: list[str] = []
        self.info = SimpleNamespace(pooling=None, max_model_len=8, max_loras=None)
        self.error: str | None = None
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

    async def run_in_pool(self, func: Any, *args: Any) -> Any:
        return func(*args)

    def render_text(self, text: str, options: Any) -> Any:
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


def _readiness(recorded: Any) -> EngineReadiness:
    return EngineReadiness(recorded, recorded, recorded, recorded, timeout_s=5)


async def test_renderer_and_metrics_are_configured_before_the_first_token():
    recorded = Recorded()
    assert await _readiness(recorded).wait(recorded.span) is recorded.info
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
        await _readiness(Recorded(**options)).wait()
