"""Answers /pooling and /classify."""

from typing import Literal

import msgspec

from server.apis.pooling.base import PoolingServeContext, PoolingServingBase
from server.apis.pooling.request import InputFields, ListResponse, VectorFields
from server.apis.pooling.vectors import to_json, values_of
from server.errors import RequestError
from server.types import EngineOutput, PoolingInfo, PoolingParams


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

    def _build_response(self, ctx: PoolingServeContext[PoolingRequest]) -> bytes:
        data = [PoolingData(index=index, data=to_json(output, ctx.request)) for index, output in enumerate(ctx.outputs)]
        return ctx.encode(PoolingResponse, data)


def _why_not(task: str | None, info: PoolingInfo) -> str:
    """Why a task is not the one that the model was started for."""
    if task == "plugin":
        return "No IOProcessor plugin installed. This engine has none; use `--engine vllm`."
    if task in info.supported_tasks:
        return f"Try switching the model's pooling_task via --pooler-config.task {task}."
    return f"Unsupported task: {task!r} Supported tasks: {', '.join(info.supported_tasks)}"


class ClassificationRequest(InputFields, kw_only=True):
    """Texts, token ids or conversations to classify."""

    use_activation: bool | None = None
    """Whether to return probabilities; false returns logits."""


class ClassificationData(msgspec.Struct, kw_only=True):
    """The classes of one input."""

    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class ClassificationResponse(ListResponse[ClassificationData], kw_only=True):
    """The response."""


class ClassificationServing(PoolingServingBase[ClassificationRequest]):
    """The most likely class of each input, and the probability of each class."""

    request_id_prefix = "classify"
    api_name = "Classification"

    def _is_supported(self, info: PoolingInfo) -> bool:
        return info.task == "classify"

    def _pooling_params(self, request: ClassificationRequest, info: PoolingInfo) -> PoolingParams:
        return PoolingParams(task="classify", use_activation=request.use_activation)

    def _build_response(self, ctx: PoolingServeContext[ClassificationRequest]) -> bytes:
        data = [_classes(index, output, ctx.info) for index, output in enumerate(ctx.outputs)]
        return ctx.encode(ClassificationResponse, data)


def _classes(index: int, output: EngineOutput, info: PoolingInfo) -> ClassificationData:
    values = values_of(output)
    label = info.id2label.get(int(values.argmax()))
    return ClassificationData(index=index, label=label, probs=values.tolist(), num_classes=len(values))
