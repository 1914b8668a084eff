"""The API server's side of the engine."""

import os
from collections.abc import Mapping
from multiprocessing.connection import Client
from typing import Any

from vllm.config import EngineConfig
from vllm.tracing import instrument
from vllm.v1.engine.utils import EngineManager, launch_engine
from vllm.v1.executor.multiproc_executor import MultiprocExecutor

IMPORTED_IN = os.getpid()


def renderer_from_config(config: EngineConfig | None) -> str:
    return f"the renderer of {config.model if config else None}"


class InputProcessor:
    def __init__(self, config: EngineConfig | None, renderer: str) -> None:
        self.renderer = renderer


class MPClient:
    @instrument(span_name="AsyncMPClient init")
    def __init__(self, config: EngineConfig | None, client_addresses: Mapping[str, str] | None) -> None:
        self.manager: EngineManager | None = None
        if client_addresses is None:
            assert config is not None
            self.manager = launch_engine(config)
        self.address = self.manager.address if self.manager else client_addresses["engine"]

    def shutdown(self) -> None:
        if self.manager is not None:
            self.manager.shutdown()


class EngineCoreClient:
    @staticmethod
    def make_async_mp_client(
        vllm_config: EngineConfig | None,
        executor_class: type[MultiprocExecutor],
        log_stats: bool,
        client_addresses: Mapping[str, str] | None = None,
        client_count: int = 1,
        client_index: int = 0,
    ) -> MPClient:
        return MPClient(vllm_config, client_addresses)


class AsyncLLM:
    def __init__(
        self,
        vllm_config: EngineConfig | None,
        executor_class: type[MultiprocExecutor] = MultiprocExecutor,
        log_stats: bool = True,
        client_addresses: Mapping[str, str] | None = None,
        client_count: int = 1,
        client_index: int = 0,
    ) -> None:
        self.log_stats = log_stats
        renderer = renderer_from_config(vllm_config)
        self.input_processor = InputProcessor(vllm_config, renderer)
        self.engine_core = EngineCoreClient.make_async_mp_client(
            vllm_config=vllm_config,
            executor_class=executor_class,
            log_stats=self.log_stats,
            client_addresses=client_addresses,
            client_count=client_count,
            client_index=client_index,
        )

    def ask(self, request: dict[str, str]) -> Any:
        with Client(self.engine_core.address) as connection:
            connection.send(request)
            return connection.recv()
