"""Detects hanging engines. Sends each EngineCore of vLLM a call that it answers only between two steps."""

import asyncio
import logging
from typing import Any, Final

from base.lifecycle import Lifecycle
from server.operation.engine_watchdog import SILENCE_METRIC, EngineWatchdog, WatchedServer
from startup.reports.crash.engine_processes import RecordedProcesses
from startup.vllm.serving.control_socket import is_changing
from startup.vllm.serving.server_context import ServerContext

logger = logging.getLogger(__name__)

_QUESTION: Final = "is_sleeping"
"""A method that only reads two attributes, without the workers. A sleeping engine answers the call, too."""
_KINDS: Final = ("EngineCore", "VllmWorker")
"""Prefixes of the names of the engine's processes."""


def create_watchdog(client: Any, context: ServerContext, server: WatchedServer) -> EngineWatchdog | None:
    """The watchdog for the engines of `client`, vLLM's AsyncLLM. None if they are not watched."""
    record, timeout_s = context.record, context.watchdog_timeout_s
    core: Any = getattr(client, "engine_core", None)
    if not timeout_s or not hasattr(core, "core_engines"):
        return None
    try:
        if getattr(client.vllm_config.parallel_config, "enable_fault_tolerance", False):
            text = "no watchdog (--engine-watchdog-timeout): with --enable-fault-tolerance, engines wait for repairs"
            logger.info(text)
            return None
        processes = RecordedProcesses(record, _KINDS)
        is_first = core.client_index == 0
        watchdog = EngineWatchdog(AskedCores(core), processes, server, timeout_s=timeout_s, is_first=is_first)
        _export_silence(watchdog)
    except Exception as err:  # noqa: BLE001 - vLLM is not as expected
        logger.warning("no watchdog (--engine-watchdog-timeout): %s: %s", type(err).__name__, err)
        return None
    return watchdog


async def watch(watchdog: EngineWatchdog, lifecycle: Lifecycle, client: Any) -> None:
    """Runs the watchdog. After a hang, makes vLLM end, even if this process could not kill the engines."""
    await watchdog.run()
    if not lifecycle.is_hung:
        return
    resources = client.engine_core.resources
    resources.engine_dead = True
    if resources.output_queue_task is not None:
        resources.output_queue_task.cancel()  # to vLLM, the end of the task that waits for outputs means a dead engine


class AskedCores:
    """Calls vLLM's engines (`server.operation.engine_watchdog.AskedEngine`). Used on the event loop."""

    def __init__(self, client: Any) -> None:
        """`client` is vLLM's AsyncMPClient."""
        self._client = client
        self._asked: dict[Any, asyncio.Task[None]] = {}
        self._earlier: frozenset[int] = frozenset()
        """Pending calls of vLLM, such as wake-up, which the engines may carry out before they answer."""

    @property
    def is_on_processor(self) -> bool:
        return bool(self._client.vllm_config.device_config.device_type == "cpu")

    def has_answered(self) -> bool:
        engines, calls = self._client.core_engines, self._client.utility_results
        if any(not task.done() for engine, task in self._asked.items() if engine in engines):
            return not self._earlier.isdisjoint(calls) or is_changing()
        for task in self._asked.values():
            task.cancel()  # the engine was removed
        self._earlier = frozenset(calls)
        self._asked = {engine: asyncio.create_task(self._ask(engine)) for engine in engines}
        return True

    async def _ask(self, engine: Any) -> None:
        try:
            await self._client._call_utility_async(_QUESTION, engine=engine)
        except Exception as err:  # noqa: BLE001 - an engine that ends or has died answers with an error
            logger.debug("the engine answers with an error: %s", err)


def _export_silence(watchdog: EngineWatchdog) -> None:
    """Adds the watchdog's metric to vLLM's metrics. vLLM has imported the metrics library by then."""
    from prometheus_client import REGISTRY, Gauge  # noqa: PLC0415 - not in each environment of this package

    if SILENCE_METRIC[0] not in REGISTRY._names_to_collectors:
        Gauge(*SILENCE_METRIC).set_function(lambda: watchdog.silence_s)
