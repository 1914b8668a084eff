"""Connects the API server to the engine."""

import asyncio
import threading
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Client
from typing import Any

from vllm.config import EngineConfig
from vllm.tracing import instrument
from vllm.v1.engine.utils import EngineManager, launch_engine
from vllm.v1.executor.multiproc_executor import MultiprocExecutor


class BackgroundResources:
    def __init__(self) -> None:
        self.engine_dead = False
        self.output_queue_task: asyncio.Task[None] | None = None


class AsyncMPClient:
    @instrument(span_name="AsyncMPClient init")
    def __init__(
        self, config: EngineConfig | None, client_addresses: Mapping[str, str] | None, client_index: int
    ) -> None:
        self.vllm_config = config
        self.client_index = client_index
        self.resources = BackgroundResources()
        self.core_engines = [b"\0\0"]
        self.utility_results: dict[int, asyncio.Future[Any]] = {}
        self._call_ids = count()
        self.manager: EngineManager | None = None
        if client_addresses is None:
            assert config is not None
            self.manager = launch_engine(config)
        self.address = self.manager.address if self.manager else client_addresses["engine"]

    async def _call_utility_async(self, method: str, *args: Any, engine: bytes) -> Any:
        call_id, loop = next(self._call_ids), asyncio.get_running_loop()
        future = self.utility_results[call_id] = loop.create_future()

        def ask() -> None:
            # Nobody is answered if the engine or the event loop ends.
            with suppress(OSError, EOFError, RuntimeError), Client(self.address) as connection:
                connection.send({"what": "utility", "method": method, "args": args})
                loop.call_soon_threadsafe(answer, connection.recv())

        def answer(result: Any) -> None:
            future = self.utility_results.pop(call_id)
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

        threading.Thread(target=ask, daemon=True).start()
        return await future

    def shutdown(self, timeout: float | None = None) -> None:
        if self.manager is not None:
            self.manager.shutdown(timeout)


class EngineCoreClient:
    @staticmethod
    def make_async_mp_client(
        vllm_config: EngineConfig | None,
        executor_class: type[MultiprocExecutor],
        log_stats: bool,
        client_addresses: Mapping[str, str] | None = None,
        client_count: int = 1,
        client_index: int = 0,
    ) -> AsyncMPClient:
        return AsyncMPClient(vllm_config, client_addresses, client_index)
