"""Answers /classify."""

import msgspec

from server.apis.pooling.base import PoolingServeContext, PoolingServingBase
from server.apis.pooling.request import InputFields, ListResponse
from server.apis.pooling.vectors import values_of
from server.types import EngineOutput, PoolingInfo, PoolingParams


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
