"""Readiness: one real token, through the renderer, the engine and the detokenizer."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from server.engine.process_link.client import EngineClient
from server.errors import EngineDeadError, EngineError, EngineStartError
from server.metrics.server_metrics import ServerMetrics
from server.operation.lora import LoraAdapters
from server.renderers.base import BaseRenderer
from server.renderers.prompts import TextOptions
from server.types import EngineInfo, EnginePrompt, PoolingParams, SamplingParams

_REQUEST_ID = "warm-up"


def _no_span(*args: Any, **options: Any) -> AbstractContextManager[None]:
    return nullcontext()


class EngineReadiness:
    """Makes the first engine, and each one after a restart, ready for requests; used on the event loop."""

    def __init__(
        self,
        engine: EngineClient,
        renderer: BaseRenderer,
        metrics: ServerMetrics,
        adapters: LoraAdapters,
        *,
        timeout_s: float,
    ) -> None:
        self._engine = engine
        self._renderer = renderer
        self._metrics = metrics
        self._adapters = adapters
        self.timeout_s = timeout_s

    async def wait(self, span: Callable[..., AbstractContextManager[None]] = _no_span) -> EngineInfo:
        """Waits until the engine has loaded the model, configures what depends on it, and warms it up.

        Args:
            span: records a phase of the start; a restart records none.

        Raises:
            EngineStartError: the engine failed, died, took too long or generated no token.
        """
        with span("wait_for_engine", waits_for="engine"):
            info = await self._engine.wait_loaded(self.timeout_s)
        self._renderer.configure(info)
        self._metrics.register_engine(info, lambda: self._engine.stats)
        with span("first_token"):
            await warm_up(self._engine, self._renderer)
        await self._load_adapters(span)
        if self._engine.error is not None:  # it died right after its token
            raise EngineStartError(self._engine.error)
        return info

    async def _load_adapters(self, span: Callable[..., AbstractContextManager[None]]) -> None:
        if self._engine.info.max_loras is None:
            return
        try:
            with span("load_adapters"):
                await self._adapters.prepare_engine()
        except EngineDeadError as err:
            raise EngineStartError(str(err)) from err


async def warm_up(engine: EngineClient, renderer: BaseRenderer) -> None:
    """Generates one token, or pools one prompt, as a request does.

    Raises:
        EngineStartError: the engine failed or died.
    """
    info = engine.info
    prompt = await renderer.run_in_pool(renderer.render_text, "Hello", TextOptions())
    if info.pooling is not None:
        params = PoolingParams(task=info.pooling.task)
        try:
            await engine.pool(_REQUEST_ID, prompt.token_ids[: info.max_model_len], params)
        except EngineError as err:
            raise EngineStartError(f"the first prompt could not be pooled: {err}") from err
        return
    detokenizer = renderer.create_detokenizer()
    sampling = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    try:
        async for output in engine.generate(_REQUEST_ID, [EnginePrompt(prompt.token_ids, sampling)]):
            detokenizer.append(output.token_ids)
            if output.error is not None:
                raise EngineStartError(f"the first token could not be generated: {output.error}")
    except EngineDeadError as err:
        raise EngineStartError(str(err)) from err
