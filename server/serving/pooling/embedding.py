"""Answers /v1/embeddings."""

import msgspec

from server.protocol.embeddings import EmbeddingData, EmbeddingRequest, EmbeddingResponse
from server.serving.binary_response import BinaryResponse
from server.serving.pooling.base import PoolingServingBase, check_dimensions
from server.serving.pooling.context import PoolingServeContext
from server.serving.pooling.vectors import binary_response, check_encoding, to_json
from server.types import PoolingInfo, PoolingParams


class EmbeddingServing(PoolingServingBase[EmbeddingRequest]):
    """One vector per input."""

    request_id_prefix = "embd"
    api_name = "Embeddings"

    def _is_supported(self, info: PoolingInfo) -> bool:
        return info.task == "embed"

    def _pooling_params(self, request: EmbeddingRequest, info: PoolingInfo) -> PoolingParams:
        check_encoding(request)
        check_dimensions(request.dimensions, info, self._models.default_name)
        return PoolingParams(task="embed", use_activation=request.use_activation, dimensions=request.dimensions)

    def _build_response(self, ctx: PoolingServeContext[EmbeddingRequest]) -> bytes | BinaryResponse:
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
