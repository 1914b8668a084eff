"""Readiness: one real token, through the renderer, the engine and the detokenizer."""

from server.errors import EngineDeadError, EngineError, EngineStartError
from server.renderers.embeds.prompt_embeds import EmbedsLimits
from server.renderers.prompts import TextOptions
from server.serving.services import Services
from server.types import PoolingInfo, PoolingParams, SamplingParams


async def warm_up(services: Services) -> None:
    """Generates one token the way a request would.

    Raises:
        EngineStartError: no token came back.
    """
    renderer = services.renderer
    info = services.engine.info
    renderer.max_model_len = info.max_model_len
    if info.embeds_width is not None:
        renderer.embeds_limits = EmbedsLimits(info.max_model_len, info.embeds_width, info.dtype)
    prompt = await renderer.render_text_async("Hello", TextOptions())
    if services.engine.info.pooling is not None:
        await _pool(services, prompt.token_ids, services.engine.info.pooling)
        return
    params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    detokenizer = renderer.create_detokenizer()
    try:
        async for output in services.engine.generate("warm-up", prompt.token_ids, params):
            detokenizer.append(output.token_ids)
            if output.error is not None:
                raise EngineStartError(f"the first token could not be generated: {output.error}")
    except EngineDeadError as err:
        raise EngineStartError(str(err)) from err


async def _pool(services: Services, token_ids: list[int], info: PoolingInfo) -> None:
    limit = services.engine.info.max_model_len
    try:
        await services.engine.pool("warm-up", token_ids[:limit], PoolingParams(task=info.task))
    except EngineError as err:
        raise EngineStartError(f"the first prompt could not be pooled: {err}") from err
