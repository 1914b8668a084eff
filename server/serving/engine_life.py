"""The engine after the start: noticed when it dies or hangs, replaced as often as the user allows."""

import asyncio
import logging
import socket
from typing import Protocol

from server.errors import EngineStartError
from server.serving.services import Services
from server.serving.warm_up import warm_up

logger = logging.getLogger(__name__)

_LOOKS_PER_TIMEOUT = 10
_LONGEST_LOOK_S = 5.0
_END_S = 1.0
"""How long the kernel may take to tell how a process ended whose socket is closed."""
_POLL_S = 0.01


class EngineHandle(Protocol):
    """The engine's process, as the launcher hands it over."""

    @property
    def connection(self) -> socket.socket:
        """This process's end of the socket pair; another one after a restart."""

    def kill(self) -> None:
        """Ends the process at once; one that has ended is no error."""

    def is_ending(self) -> bool:
        """Whether the process has begun to end, which may be long before its socket is closed; takes no time."""

    def describe_end(self) -> str | None:
        """How somebody ended the process, in words; None while it lives, and where it ended by itself."""

    def close(self) -> None:
        """Waits for a process that is dead or killed; blocks."""

    def begin_restart(self) -> None:
        """Starts another process, as far as that must be done on the main thread.

        Raises:
            EngineStartError: it could not be started.
        """

    def end_restart(self) -> None:
        """The rest of it; blocks, and raises the same."""

    def abandon_restart(self) -> None:
        """Lets an `end_restart` that waits in another thread fail."""


class EngineLife:
    """Lives on the event loop, next to the HTTP server; `run` is its one task."""

    def __init__(self, services: Services, handle: EngineHandle, ready_timeout_s: float) -> None:
        self._services = services
        self._engine = services.engine
        self._handle = handle
        self._ready_timeout_s = ready_timeout_s

    async def run(self) -> str:
        """Returns when there will be no engine any more, and why."""
        recovery = self._services.recovery
        while True:
            await self._wait_dead()
            reason = await self._find_reason()
            if not self._engine.is_ready or not recovery.num_left:
                return reason
            recovery.begin(reason)
            logger.error("the engine died: %s; another one is started, %d more may follow", reason, recovery.num_left)
            while (failure := await self._restart()) is not None:
                if not recovery.num_left:
                    return failure
                recovery.begin(failure)
                logger.error("the engine could not be started again: %s; once more", failure)

    def look(self) -> None:
        """To be called often: probes need not wait until the kernel has closed the socket of an engine that ends."""
        if self._engine.is_alive and self._handle.is_ending():  # one that is dead may be being replaced in a thread
            self._engine.is_ending = True

    async def _wait_dead(self) -> None:
        """Until the engine is gone, or hangs for longer than it may."""
        timeout_s = self._services.config.engine_watchdog_timeout_s
        if not timeout_s:
            await self._engine.dead.wait()
            return
        watching = asyncio.create_task(self._watch(timeout_s), name="engine-watchdog")
        try:
            await self._engine.dead.wait()
        finally:
            watching.cancel()

    async def _watch(self, timeout_s: float) -> None:
        """Asks the engine's loop for signs of life once it is ready; loading has a bound of its own.

        Looks are counted instead of seconds, so that a pause of this process is no pause of the engine.
        """
        look_s = min(timeout_s / _LOOKS_PER_TIMEOUT, _LONGEST_LOOK_S)
        num_silent = 0
        self._engine.ping()
        while num_silent * look_s < timeout_s:
            await asyncio.sleep(look_s)
            if self._engine.is_heard or not self._engine.is_ready:
                self._engine.is_heard = False
                self._engine.ping()
                num_silent = 0
            else:
                num_silent += 1
        self._engine.give_up(f"it was silent for {timeout_s:g} s (--engine-watchdog-timeout) and has been killed")
        self._handle.kill()

    async def _find_reason(self) -> str:
        """The engine's own words, or those of the kernel, which may come a little later."""
        reason = self._engine.error or "it is gone"
        if not self._engine.is_lost:
            return reason
        for _ in range(int(_END_S / _POLL_S)):
            if (end := self._handle.describe_end()) is not None:
                return end
            await asyncio.sleep(_POLL_S)
        return reason

    async def _restart(self) -> str | None:
        """Starts another engine and makes it generate a token; returns why that failed."""
        services, recovery = self._services, self._services.recovery
        services.metrics.engine_life.record_restart()
        try:
            await self._replace_process()
            await self._engine.restart(self._handle.connection)
            await self._engine.wait_loaded(self._ready_timeout_s)
            await warm_up(services)
        except EngineStartError as err:
            self._engine.give_up(str(err))
            self._handle.kill()
            return str(err)
        finally:
            seconds = recovery.elapsed_s
            recovery.end()
        self._engine.mark_ready()
        logger.info("another engine is ready, %.2f s after the last one died", seconds)
        return None

    async def _replace_process(self) -> None:
        handle = self._handle
        handle.kill()
        await asyncio.to_thread(handle.close)
        handle.begin_restart()
        ending = asyncio.create_task(asyncio.to_thread(handle.end_restart), name="end-restart")
        try:
            await asyncio.wait({ending}, timeout=self._ready_timeout_s)
        finally:
            if not ending.done():  # out of time, or the server is to end and would wait for the thread
                handle.abandon_restart()
        await ending
