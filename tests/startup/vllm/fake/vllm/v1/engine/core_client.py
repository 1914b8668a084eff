"""Connects the API server to the engine."""

from collections.abc import Mapping

from vllm.config import EngineConfig
from vllm.tracing import instrument
from vllm.v1.engine.utils import EngineManager, launch_engine
from vllm.v1.executor.multiproc_executor import MultiprocExecutor


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
