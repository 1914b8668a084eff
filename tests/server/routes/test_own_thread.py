"""Work beside the event loop."""

import asyncio
import threading

import pytest

from server.routes.own_thread import run_in_own_thread


async def test_the_result_is_that_of_another_thread() -> None:
    assert await run_in_own_thread(threading.current_thread) is not threading.current_thread()


async def test_a_failure_is_raised_where_it_is_awaited() -> None:
    with pytest.raises(ZeroDivisionError):
        await run_in_own_thread(lambda: 1 / 0)


async def test_the_loop_goes_on_meanwhile() -> None:
    gate = threading.Event()
    waiting = asyncio.create_task(run_in_own_thread(lambda: gate.wait(60)))
    await asyncio.sleep(0)
    gate.set()
    assert await waiting is True


async def test_who_goes_away_leaves_nothing_that_fails() -> None:
    gate, has_ended = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def work() -> None:
        gate.wait(60)
        loop.call_soon_threadsafe(has_ended.set)

    waiting = asyncio.create_task(run_in_own_thread(work))
    await asyncio.sleep(0)
    waiting.cancel()
    gate.set()
    async with asyncio.timeout(60):
        await has_ended.wait()
    assert waiting.cancelled()
