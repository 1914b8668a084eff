"""Answers /pooling."""

from typing import Literal

import msgspec

from server.apis.pooling.base import PoolingServeContext, PoolingServingBase
from server.apis.pooling.request import ListResponse, VectorFields
from server.apis.pooling.vectors import binary_response, to_json
from server.errors import RequestError
from server.http_body.response_parts import BinaryResponse
from server.types import PoolingInfo, PoolingParams


class PoolingRequest(VectorFields, kw_only=True):
    """Prompts to pool as `task` specifies."""

    task: str | None = None
    dimensions: int | None = None
    use_activation: bool | None = None


class PoolingData(msgspec.Struct, kw_only=True):
    """The result for one prompt."""

    index: int
    object: Literal["pooling"] = "pooling"
    data: list[float | list[float]] | str


class PoolingResponse(ListResponse[PoolingData], kw_only=True):
    """The response."""


_REMOVED = {
    "score": "`score` task was removed; use `classify` instead.",
    "encode": "`encode` task was removed; use `token_embed` or `token_classify` instead.",
}


class PoolingServing(PoolingServingBase[PoolingRequest]):
    """The result of any pooling task that the model supports."""

    request_id_prefix = "pooling"
    api_name = "Pooling"

    def _pooling_params(self, request: PoolingRequest, info: PoolingInfo) -> PoolingParams:
        if request.dimensions is not None:
            raise RequestError("dimensions is currently not supported", param="dimensions")
        if request.task in _REMOVED:
            raise RequestError(_REMOVED[request.task], param="task")
        if request.task not in (None, info.task):
            raise RequestError(_why_not(request.task, info), param="task")
        return PoolingParams(task=info.task, use_activation=request.use_activation)

    def _build_response(self, ctx: PoolingServeContext[PoolingRequest]) -> bytes | BinaryResponse:
        if (binary := binary_response(ctx)) is not None:
            return binary
        data = [PoolingData(index=index, data=to_json(output, ctx.request)) for index, output in enumerate(ctx.outputs)]
        return ctx.encode(PoolingResponse, data)


def _why_not(task: str | None, info: PoolingInfo) -> str:
    """Why a task is not the one that the model was started for."""
    if task == "plugin":
        return "No IOProcessor plugin installed. This engine has none; use `--engine vllm`."
    if task in info.supported_tasks:
        return f"Try switching the model's pooling_task via --pooler-config.task {task}."
    return f"Unsupported task: {task!r} Supported tasks: {', '.join(info.supported_tasks)}"
