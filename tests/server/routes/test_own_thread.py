"""Blocking work in a thread of its own."""

import asyncio
import threading

import pytest

from server.routes.own_thread import run_in_own_thread


async def test_the_work_runs_in_another_thread() -> None:
    assert await run_in_own_thread(threading.current_thread) is not threading.current_thread()


async def test_an_exception_is_raised_by_the_await() -> None:
    with pytest.raises(ZeroDivisionError):
        await run_in_own_thread(lambda: 1 / 0)


async def test_the_loop_runs_during_the_work() -> None:
    may_end = threading.Event()
    waiting = asyncio.create_task(run_in_own_thread(lambda: may_end.wait(60)))
    await asyncio.sleep(0)
    may_end.set()
    assert await waiting is True


async def test_work_whose_caller_is_cancelled_ends_without_an_error() -> None:
    may_end, has_ended = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def work() -> None:
        may_end.wait(60)
        loop.call_soon_threadsafe(has_ended.set)

    waiting = asyncio.create_task(run_in_own_thread(work))
    await asyncio.sleep(0)
    waiting.cancel()
    may_end.set()
    async with asyncio.timeout(60):
        await has_ended.wait()
    assert waiting.cancelled()
