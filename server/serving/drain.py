"""The end of a server that was asked to stop: nothing is lost, and everybody is told to go elsewhere."""

import asyncio
import logging
import time
from collections.abc import Callable

from server.serving.services import Services

logger = logging.getLogger(__name__)

LAST_WORDS_S = 2
"""How long cut requests have to receive their error."""
_HASTY_S = 0.25
"""The same where somebody has lost patience, and for requests that have to be cancelled."""
_QUIET_S = 0.25
"""The port closes when no request has come for so long: one that waits to be accepted then would be lost."""
_LONGEST_WAIT_FOR_QUIET_S = 5.0
_LOOK_S = 0.02


class Drain:
    """Lives on the event loop; `run` is called once, `hurry` may be called meanwhile."""

    def __init__(self, services: Services, announce_close: Callable[[], None]) -> None:
        """`announce_close` makes every connection end with the answer that it gets next, or is getting."""
        self._services = services
        self._announce_close = announce_close
        self._is_hurried = asyncio.Event()

    async def run(self) -> None:
        """Returns when the port may be closed."""
        services = self._services
        begin_s = time.monotonic()
        services.gate.close()
        services.recovery.forbid()
        self._announce_close()
        if services.gate.num_running:
            await self._finish_running(services.config.shutdown_timeout_s)
        await self._refuse_until_quiet(begin_s + services.config.drain_grace_s)

    def hurry(self) -> None:
        """Ends running requests with an error, and waits for nobody any more."""
        self._is_hurried.set()

    async def _finish_running(self, timeout_s: float) -> None:
        gate = self._services.gate
        logger.info("shutting down: %d requests may run for %g s more", gate.num_running, timeout_s)
        if await self._wait_idle(timeout_s):
            return
        logger.warning("%d requests are cut short", gate.num_running)
        is_hurried = self._is_hurried.is_set()
        self._services.engine.fail_running("the server was stopped" if is_hurried else "the server is shutting down")
        if not await gate.wait_idle(_HASTY_S if is_hurried else LAST_WORDS_S):
            gate.cut()
            await gate.wait_idle(_HASTY_S)

    async def _wait_idle(self, timeout_s: float) -> bool:
        """Until no request runs; False if some still do after that time, or when there is a hurry."""
        idle = asyncio.create_task(self._services.gate.wait_idle(timeout_s), name="drain-idle")
        hurried = asyncio.create_task(self._is_hurried.wait(), name="drain-hurry")
        await asyncio.wait((idle, hurried), return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        hurried.cancel()
        return not self._services.gate.num_running

    async def _refuse_until_quiet(self, grace_end_s: float) -> None:
        """New requests get their 503 until load balancers have had their time and clients have understood."""
        latest_s = max(grace_end_s, time.monotonic() + _LONGEST_WAIT_FOR_QUIET_S)
        while not self._is_hurried.is_set():
            now_s = time.monotonic()
            is_quiet = self._services.gate.quiet_s >= _QUIET_S
            if now_s >= latest_s or (now_s >= grace_end_s and is_quiet):
                return
            await asyncio.sleep(_LOOK_S)
