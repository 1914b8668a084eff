"""The drain, which finishes running requests and rejects new requests until the port may be closed."""

import asyncio
import logging
import time
from collections.abc import Callable

from base.lifecycle import Lifecycle
from base.server_settings import LifecycleConfig
from envs.registry import env
from server.operation.admission import RunningRequests

logger = logging.getLogger(__name__)

ERROR_DELIVERY_S = 2
"""How many seconds clients have to receive the error of a request that the drain has ended."""
_SHORT_DELIVERY_S = 0.25
"""The same time as `ERROR_DELIVERY_S`, but after a second signal and for cancelled requests."""
_QUIET_S = 0.25
"""The port closes when no request has arrived for this time, in seconds.

Otherwise, connections that are not accepted yet would be lost. A server of a router (VCLI_ROUTER) does not
wait, because the router sends no requests to a server that is ending.
"""
_LONGEST_WAIT_FOR_QUIET_S = 0.3
"""The longest wait, in seconds, for a time without requests. Retrying clients must not keep the port open."""
_DEATH_GRACE_S = 1.0
"""How many seconds a server answers probes with 503 after its engine has died."""
_POLL_S = 0.02


class Drain:
    """Runs on the event loop. `run` is called once. `stop_waiting` may be called while `run` waits."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        running: RunningRequests,
        fail_running: Callable[[str], None],
        config: LifecycleConfig,
        announce_close: Callable[[], None],
    ) -> None:
        """`fail_running` ends all running requests with an error.

        `announce_close` makes every connection close after its current or next response.
        """
        self._lifecycle = lifecycle
        self._running = running
        self._fail_running = fail_running
        self._announce_close = announce_close
        self._timeout_s = config.shutdown_timeout_s
        self._grace_s = config.drain_grace_s
        self._quiet_s = 0.0 if env.VCLI_ROUTER.get() else _QUIET_S
        self._is_stopped = asyncio.Event()

    async def run(self) -> None:
        """Drains the server. Returns when the port may be closed."""
        begin_s = time.monotonic()
        if self._lifecycle.state != "dead":
            self._lifecycle.drain()
        self._announce_close()
        if self._running.num_running:
            await self._finish_running()
        await self._reject_until_quiet(begin_s + self._grace_s)

    async def run_dead(self) -> None:
        """Waits `_DEATH_GRACE_S` after the engine's end. Behind a router, only waits for running requests."""
        if env.VCLI_ROUTER.get():
            await self._running.wait_idle(_DEATH_GRACE_S)
        else:
            await asyncio.sleep(_DEATH_GRACE_S)

    def stop_waiting(self) -> None:
        """Ends running requests with an error, and skips all further waiting."""
        self._is_stopped.set()

    async def _finish_running(self) -> None:
        running = self._running
        logger.info(
            "shutting down: %d requests may run for %g s more (--shutdown-timeout)",
            running.num_running,
            self._timeout_s,
        )
        if await self._wait_idle():
            return
        logger.warning("%d requests are ended with an error", running.num_running)
        is_stopped = self._is_stopped.is_set()
        self._fail_running("the server was stopped" if is_stopped else "the server is shutting down")
        if not await running.wait_idle(_SHORT_DELIVERY_S if is_stopped else ERROR_DELIVERY_S):
            running.cancel()
            await running.wait_idle(_SHORT_DELIVERY_S)

    async def _wait_idle(self) -> bool:
        """Waits until no request runs. Returns False after the timeout or `stop_waiting`."""
        idle = asyncio.create_task(self._running.wait_idle(self._timeout_s), name="drain-idle")
        stopped = asyncio.create_task(self._is_stopped.wait(), name="drain-stop")
        await asyncio.wait((idle, stopped), return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        stopped.cancel()
        return not self._running.num_running

    async def _reject_until_quiet(self, grace_end_s: float) -> None:
        """Answers requests with 503 until the grace time is over and clients send no more requests."""
        latest_s = max(grace_end_s, time.monotonic()) + _LONGEST_WAIT_FOR_QUIET_S
        while not self._is_stopped.is_set():
            now_s = time.monotonic()
            is_quiet = self._running.quiet_s >= self._quiet_s
            if now_s >= latest_s or (now_s >= grace_end_s and is_quiet):
                return
            await asyncio.sleep(_POLL_S)
