"""Waits until processes of a set have ended, and sends signals to them."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress


class ProcessSet:
    """A set of processes. Used on the event loop. Signals go through pidfds, never to a reused process id."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._fds: dict[int, int] = {}
        """Process id -> pidfd, for each added process that has not ended."""
        self._known: set[int] = set()
        """The ids of all processes that were ever added."""
        self._change = asyncio.Event()

    def add(self, pids: Iterable[int]) -> None:
        """Adds processes. Ignores processes that have ended already."""
        for pid in pids:
            if pid not in self._known:
                with suppress(OSError):
                    self._fds[pid] = os.pidfd_open(pid)
                    self._known.add(pid)
                    self._loop.add_reader(self._fds[pid], self._end, pid)

    def is_running(self, pid: int) -> bool:
        """Whether the process was added and has not ended."""
        return pid in self._fds

    async def wait_all(self, timeout_s: float) -> bool:
        """Waits until all processes have ended. Returns False if some still run after `timeout_s`."""
        await self._wait(lambda: not self._fds, timeout_s)
        return not self._fds

    async def wait(self, pid: int, timeout_s: float | None) -> None:
        """Waits at most `timeout_s` until this process has ended."""
        await self._wait(lambda: pid not in self._fds, timeout_s)

    def signal(self, number: int) -> None:
        """Sends a signal to each added process that still runs."""
        for fd in self._fds.values():
            with suppress(OSError):
                signal.pidfd_send_signal(fd, number)

    def close(self) -> None:
        for pid in list(self._fds):
            self._end(pid)

    async def _wait(self, is_over: Callable[[], bool], timeout_s: float | None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not is_over():
                    self._change.clear()
                    await self._change.wait()

    def _end(self, pid: int) -> None:
        fd = self._fds.pop(pid)
        self._loop.remove_reader(fd)
        os.close(fd)
        self._change.set()
