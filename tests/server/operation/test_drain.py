"""The drain of a server, in the test's process. `tests/e2e/test_shutdown.py` drains real servers."""

import asyncio
import time
from typing import Any

from base.lifecycle import Lifecycle
from base.server_settings import LifecycleConfig
from server.operation import drain
from server.operation.admission import RunningRequests
from server.operation.drain import Drain

GRACE_S = 0.3
QUIET_S = 0.05


async def test_a_long_grace_ends_with_quiet_too(monkeypatch):
    """A client that sends requests to the end of the grace gets its last 503 before the port closes."""
    monkeypatch.setattr(drain, "_QUIET_S", QUIET_S)
    monkeypatch.setattr(drain, "_LONGEST_WAIT_FOR_QUIET_S", GRACE_S)
    running = RunningRequests()

    async def reject_until_grace_ends() -> None:
        end_s = time.monotonic() + GRACE_S
        while time.monotonic() < end_s:
            running.note_rejection()
            await asyncio.sleep(0.005)

    engine: Any = None  # no request runs that it would have to end
    config = LifecycleConfig(drain_grace_s=GRACE_S)
    client = asyncio.create_task(reject_until_grace_ends())
    await Drain(Lifecycle(), running, engine, config, lambda: None).run()
    assert running.quiet_s >= QUIET_S
    await client


async def test_running_requests_are_waited_for():
    running = RunningRequests()
    assert await running.wait_idle(0.01)
    with running.hold():
        assert not await running.wait_idle(0.01)
        waiting = asyncio.create_task(running.wait_idle(100))
        await asyncio.sleep(0)
        assert not waiting.done()
    assert await waiting
