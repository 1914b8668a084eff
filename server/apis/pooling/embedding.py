"""Answers /v1/embeddings."""

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal

import msgspec
import numpy as np
from msgspec.structs import replace

from server.apis.pooling.base import PoolingServeContext, PoolingServingBase, check_dimensions
from server.apis.pooling.request import Dimensions, ListResponse, VectorFields
from server.apis.pooling.vectors import to_json, values_of
from server.renderers.tokenizers.tokenizer import Encoded
from server.types import EngineOutput, PoolingInfo, PoolingParams, TensorData

_NORM_TOLERANCE = 1e-2
"""bfloat16 rounds the length of a normalized embedding by less."""


class EmbeddingRequest(VectorFields, kw_only=True):
    """Texts, token ids or conversations to embed."""

    dimensions: Dimensions | None = None
    """Truncate embeddings to this length; only for models that were trained for it."""
    use_activation: bool | None = None
    """Whether to normalize embeddings to length one; null is the model's default."""


class EmbeddingData(msgspec.Struct, kw_only=True):
    """One embedding."""

    index: int
    object: Literal["embedding"] = "embedding"
    embedding: list[float] | str


class EmbeddingResponse(ListResponse[EmbeddingData], kw_only=True):
    """The response."""


class EmbeddingServing(PoolingServingBase[EmbeddingRequest]):
    """One vector per input; with `enable_chunked_processing`, of inputs of any length."""

    request_id_prefix = "embd"
    api_name = "Embeddings"

    def _is_supported(self, info: PoolingInfo) -> bool:
        return info.task == "embed"

    def _max_input_len(self, info: PoolingInfo) -> int | None:
        return info.max_embed_len or (sys.maxsize if info.chunks_prompts else None)

    async def _run_engine(self, ctx: PoolingServeContext[EmbeddingRequest]) -> None:
        """The outputs are those of all parts of all prompts."""
        parts = [part for prompt in ctx.prompts for part in self._parts(ctx, prompt)]
        ctx.outputs = await self._pool(ctx, parts, self._new_ids(ctx, len(parts)), [ctx.pooling_params] * len(parts))

    def _joined_outputs(self, ctx: PoolingServeContext[EmbeddingRequest]) -> Iterator[EngineOutput]:
        """One output per prompt."""
        outputs = iter(ctx.outputs)
        for prompt in ctx.prompts:
            parts = self._parts(ctx, prompt)
            yield _join_parts(list(islice(outputs, len(parts))), parts)

    def _parts(self, ctx: PoolingServeContext[EmbeddingRequest], prompt: Encoded) -> list[Encoded]:
        return _split_prompt(prompt, self._engine.info.max_model_len) if ctx.info.chunks_prompts else [prompt]

    def _pooling_params(self, request: EmbeddingRequest, info: PoolingInfo) -> PoolingParams:
        check_dimensions(request.dimensions, info, self._models.default_name)
        return PoolingParams(task="embed", use_activation=request.use_activation, dimensions=request.dimensions)

    def _build_response(self, ctx: PoolingServeContext[EmbeddingRequest]) -> bytes:
        ctx.outputs = list(self._joined_outputs(ctx))
        data = [
            EmbeddingData(index=index, embedding=to_json(output, ctx.request))
            for index, output in enumerate(ctx.outputs)
        ]
        return ctx.encode(EmbeddingResponse, data)


def _split_prompt(prompt: Encoded, most_tokens: int) -> list[Encoded]:
    """The prompt's tokens in parts of at most so many."""
    starts = range(0, len(prompt.token_ids), most_tokens)
    return [Encoded(prompt.token_ids[start : start + most_tokens]) for start in starts]


def _join_parts(outputs: Sequence[EngineOutput], parts: Sequence[Encoded]) -> EngineOutput:
    """The average of the parts' embeddings by their number of tokens; normalized if all parts are."""
    if len(outputs) == 1:
        return outputs[0]
    vectors = np.stack([values_of(output) for output in outputs])
    average = np.average(vectors, axis=0, weights=[len(part.token_ids) for part in parts])
    if np.allclose(np.linalg.norm(vectors, axis=1), 1, rtol=_NORM_TOLERANCE):
        average /= max(float(np.linalg.norm(average)), 1e-12)
    data = np.ascontiguousarray(average, np.float32)
    return replace(outputs[0], data=TensorData("float32", data.shape, memoryview(data.tobytes())))
