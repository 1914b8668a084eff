"""Runs a real pooling core in the server's process, with the methods of the engine client."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from base.errors import EngineError
from server.terms.config import ModelFiles, RendererConfig
from server.terms.types import EngineOutput, EngineStats, PoolingParams
from server.text.renderers.renderer import Renderer
from tests.server.engine.pooling.tiny_poolers import SmallPooling
from tests.server.http.conftest import LiveServer, run_app
from tests.server.server_config import server_config

NAME = "tiny"


class PooledEngine:
    """Runs a step when a request waits. Requests of the same iteration of the loop form one batch."""

    def __init__(self, folder: Path, **config: Any) -> None:
        built = SmallPooling(folder, **config)
        self.core, self.info = built.core, built.info
        self.is_held = False
        """While this is true, nothing is computed."""
        self.requests: dict[str, tuple[list[int], list[int] | None, PoolingParams]] = {}
        self.aborted: list[str] = []
        self.batches: list[int] = []
        self._found: dict[str, EngineOutput] = {}
        self._subscribers: list[Callable[[EngineStats], None]] = []

    @property
    def stats(self) -> EngineStats:
        return self.core.stats

    def subscribe_stats(self, callback: Callable[[EngineStats], None]) -> None:
        self._subscribers.append(callback)

    async def pool(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: PoolingParams,
        *,
        token_type_ids: list[int] | None = None,
    ) -> EngineOutput:
        assert request_id not in self.requests, "engine ids must be unique"
        self.requests[request_id] = (prompt_token_ids, token_type_ids, params)
        refused = self.core.pool(request_id, prompt_token_ids, token_type_ids, params)
        if refused is not None:
            raise EngineError(refused.error or "")
        try:
            await asyncio.sleep(0)
            while request_id not in self._found:
                if self.is_held:
                    await asyncio.sleep(0.005)
                    continue
                outputs = self.core.step()
                self.batches.append(len(outputs))
                self._found |= {output.request_id: output for output in outputs}
                for callback in self._subscribers:
                    callback(self.core.stats)
        except asyncio.CancelledError:
            self.aborted.append(request_id)
            self.core.abort([request_id])
            raise
        output = self._found[request_id]
        if output.error is not None:
            raise EngineError(output.error)
        return output


@contextmanager
def serve_folder(folder: Path, *, renderer: dict[str, Any] | None = None, **options: Any) -> Iterator[LiveServer]:
    names = ("runner", "convert", "pooler", "hf_overrides")
    engine = PooledEngine(folder, **{key: options.pop(key) for key in names if key in options})
    config = server_config(**({"served_model_names": (NAME,)} | options))
    files = ModelFiles(folder, folder)
    with Renderer(files, RendererConfig(**({"chat_template": None, "num_workers": 1} | (renderer or {})))) as hf:
        hf.warm_up()
        hf.pools.text.submit(int).result()  # starts the thread, which stays until the server ends
        with run_app(config, hf, engine) as server:
            yield server
