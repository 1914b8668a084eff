"""Readiness: one real token, through the renderer, the engine and the detokenizer."""

from server.errors import EngineDeadError, EngineStartError
from server.renderers.prompts import TextOptions
from server.serving.services import Services
from server.types import SamplingParams


async def warm_up(services: Services) -> None:
    """Generates one token the way a request would.

    Raises:
        EngineStartError: no token came back.
    """
    renderer = services.renderer
    renderer.max_model_len = services.engine.info.max_model_len
    prompt = await renderer.render_text_async("Hello", TextOptions())
    params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    detokenizer = renderer.create_detokenizer()
    try:
        async for output in services.engine.generate("warm-up", prompt.token_ids, params):
            detokenizer.append(output.token_ids)
            if output.error is not None:
                raise EngineStartError(f"the first token could not be generated: {output.error}")
    except EngineDeadError as err:
        raise EngineStartError(str(err)) from err
