"""The drain of a server, in the test's process. `tests/e2e/test_shutdown.py` drains real servers."""

import asyncio
from types import SimpleNamespace

from base.lifecycle import Lifecycle
from base.server_settings import LifecycleConfig
from server.operation import admission, drain
from server.operation.admission import RunningRequests
from server.operation.drain import Drain

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
