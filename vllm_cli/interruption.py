"""Runs a benchmark or a batch. Ctrl-C and SIGTERM cancel the work, which cleans up before the exit."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Interrupted(Exception):  # noqa: N818 - not an error
    """SIGINT or SIGTERM was received, and the cancelled work has cleaned up."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


def run_interruptibly(work: Coroutine[Any, Any, T]) -> T:
    """Runs the work until its end, or until a signal cancels it. A second signal ends this process at once.

    Must be called on the main thread, because no other thread can set signal handlers.
    """
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run_until_signalled(work))


async def _run_until_signalled(work: Coroutine[Any, Any, T]) -> T:
    received: list[int] = []
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(work)

    def interrupt(number: int) -> None:
        received.append(number)
        stop_listening()
        task.cancel()

    def stop_listening() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not received:
            raise
        raise Interrupted(received[0]) from None
    finally:
        stop_listening()
