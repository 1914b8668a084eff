"""Answers /pooling."""

import msgspec

from server.errors import RequestError
from server.protocol.pooling import PoolingData, PoolingRequest, PoolingResponse
from server.serving.binary_response import BinaryResponse
from server.serving.pooling.base import PoolingServingBase
from server.serving.pooling.context import PoolingServeContext
from server.serving.pooling.vectors import binary_response, check_encoding, to_json
from server.types import PoolingInfo, PoolingParams

_REMOVED = {
    "score": "`score` task was removed; use `classify` instead.",
    "encode": "`encode` task was removed; use `token_embed` or `token_classify` instead.",
}


class PoolingServing(PoolingServingBase[PoolingRequest]):
    """The result of any pooling task that the model supports."""

    request_id_prefix = "pooling"
    api_name = "Pooling"

    def _pooling_params(self, request: PoolingRequest, info: PoolingInfo) -> PoolingParams:
        check_encoding(request)
        if request.dimensions is not None:
            raise RequestError("dimensions is currently not supported", param="dimensions")
        if request.task in _REMOVED:
            raise RequestError(_REMOVED[request.task], param="task")
        task = next((task for task in info.supported_tasks if task == (request.task or info.task)), None)
        if task is None:
            supported = ", ".join(info.supported_tasks)
            raise RequestError(f"Unsupported task: {request.task!r} Supported tasks: {supported}", param="task")
        return PoolingParams(task=task, use_activation=request.use_activation)

    def _build_response(self, ctx: PoolingServeContext[PoolingRequest]) -> bytes | BinaryResponse:
        if (binary := binary_response(ctx)) is not None:
            return binary
        return msgspec.json.encode(
            PoolingResponse(
                id=ctx.request_id,
                created=ctx.created,
                model=ctx.model_name,
                data=[
                    PoolingData(index=index, data=to_json(output, ctx.request))
                    for index, output in enumerate(ctx.outputs)
                ],
                usage=ctx.usage,
            )
        )
