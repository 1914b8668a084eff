"""Runs blocking work in a thread of its own, because the renderer pool may be busy."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def run_in_own_thread(work: Callable[[], T]) -> T:
    """Returns the result of `work`; for work that is done a few times a minute, one call at a time."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, err: Exception | None) -> None:
        if done.cancelled():
            return
        if err is not None:
            done.set_exception(err)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except Exception as err:  # noqa: BLE001 - raised again by the await below
            failure = err
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="own-thread", daemon=True).start()
    return await done
