"""Answers /v1/embeddings, and the base of all endpoints that embed."""

import sys
from collections.abc import Iterator
from itertools import islice
from typing import TypeVar

import msgspec

from server.apis.pooling.base import PoolingServingBase, check_dimensions
from server.apis.pooling.chunks import join_parts, split_prompt
from server.apis.pooling.context import PooledPrompt, PoolingServeContext
from server.apis.pooling.embedding_bodies import EmbeddingData, EmbeddingRequest, EmbeddingResponse
from server.apis.pooling.request import Truncatable
from server.apis.pooling.vectors import binary_response, to_json
from server.http_body.binary_response import BinaryResponse
from server.types import EngineOutput, PoolingInfo, PoolingParams

E = TypeVar("E", bound=Truncatable)


class EmbeddingServingBase(PoolingServingBase[E]):
    """One vector per input; with `enable_chunked_processing`, of inputs of any length."""

    request_id_prefix = "embd"
    api_name = "Embeddings"

    def _is_supported(self, info: PoolingInfo) -> bool:
        return info.task == "embed"

    def _max_input_len(self, info: PoolingInfo) -> int | None:
        return info.max_embed_len or (sys.maxsize if info.chunks_prompts else None)

    async def _run_engine(self, ctx: PoolingServeContext[E]) -> None:
        """The outputs are those of all parts of all prompts."""
        parts = [part for prompt in ctx.prompts for part in self._parts(ctx, prompt)]
        ctx.outputs = await self._pool(ctx, parts, self._new_ids(ctx, len(parts)), [ctx.pooling_params] * len(parts))

    def _joined_outputs(self, ctx: PoolingServeContext[E]) -> Iterator[EngineOutput]:
        """One output per prompt."""
        outputs = iter(ctx.outputs)
        for prompt in ctx.prompts:
            parts = self._parts(ctx, prompt)
            yield join_parts(list(islice(outputs, len(parts))), parts)

    def _parts(self, ctx: PoolingServeContext[E], prompt: PooledPrompt) -> list[PooledPrompt]:
        return split_prompt(prompt, self._engine.info.max_model_len) if ctx.info.chunks_prompts else [prompt]


class EmbeddingServing(EmbeddingServingBase[EmbeddingRequest]):
    """Answers /v1/embeddings."""

    def _pooling_params(self, request: EmbeddingRequest, info: PoolingInfo) -> PoolingParams:
        check_dimensions(request.dimensions, info, self._models.default_name)
        return PoolingParams(task="embed", use_activation=request.use_activation, dimensions=request.dimensions)

    def _build_response(self, ctx: PoolingServeContext[EmbeddingRequest]) -> bytes | BinaryResponse:
        ctx.outputs = list(self._joined_outputs(ctx))
        if (binary := binary_response(ctx)) is not None:
            return binary
        return msgspec.json.encode(
            EmbeddingResponse(
                id=ctx.request_id,
                created=ctx.created,
                model=ctx.model_name,
                data=[
                    EmbeddingData(index=index, embedding=to_json(output, ctx.request))
                    for index, output in enumerate(ctx.outputs)
                ],
                usage=ctx.usage,
            )
        )
