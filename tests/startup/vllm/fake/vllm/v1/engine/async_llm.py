"""The API server's side of the engine."""

from collections.abc import Mapping
from multiprocessing.connection import Client
from typing import Any

from vllm.config import EngineConfig
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.executor.multiproc_executor import MultiprocExecutor


def renderer_from_config(config: EngineConfig | None) -> "Renderer":
    return Renderer()


class Renderer:
    tokenizer = None

    def shutdown(self) -> None:
        """Ends nothing, because this renderer has no threads."""


class InputProcessor:
    def __init__(self, vllm_config: EngineConfig | None, renderer: Renderer) -> None:
        self.renderer = renderer


class OutputProcessor:
    def __init__(self, tokenizer: object) -> None:
        self.tokenizer = tokenizer


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
        self.vllm_config = vllm_config
        self.renderer = renderer = renderer_from_config(vllm_config)
        self.input_processor = InputProcessor(vllm_config, renderer)
        self.output_processor = OutputProcessor(renderer.tokenizer)
        self.engine_core = EngineCoreClient.make_async_mp_client(
            vllm_config=vllm_config,
            executor_class=executor_class,
            log_stats=self.log_stats,
            client_addresses=client_addresses,
            client_count=client_count,
            client_index=client_index,
        )

    def shutdown(self, timeout: float | None = None) -> None:
        self.renderer.shutdown()
        self.engine_core.shutdown(timeout)

    async def sleep(self, level: int = 1, mode: str = "abort") -> None:
        await self._call("sleep", level, mode)

    async def wake_up(self, tags: list[str] | None = None) -> None:
        await self._call("wake_up", tags)

    async def collective_rpc(self, method: str) -> None:
        await self._call("collective_rpc", method)

    async def _call(self, method: str, *args: Any) -> None:
        (engine,) = self.engine_core.core_engines
        await self.engine_core._call_utility_async(method, *args, engine=engine)

    @property
    def errored(self) -> bool:
        if self.engine_core.resources.engine_dead:
            return True
        manager = self.engine_core.manager
        return manager is not None and not manager.process.is_alive()

    def ask(self, request: dict[str, str]) -> Any:
        with Client(self.engine_core.address) as connection:
            connection.send(request)
            return connection.recv()
