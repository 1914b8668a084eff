"""Answers /classify."""

import msgspec

from server.apis.pooling.base import PoolingServingBase
from server.apis.pooling.classification_bodies import ClassificationData, ClassificationRequest, ClassificationResponse
from server.apis.pooling.context import PoolingServeContext
from server.apis.pooling.vectors import values_of
from server.types import EngineOutput, PoolingInfo, PoolingParams


class ClassificationServing(PoolingServingBase[ClassificationRequest]):
    """The most likely class of each input, and the probability of each class."""

    request_id_prefix = "classify"
    api_name = "Classification"

    def _is_supported(self, info: PoolingInfo) -> bool:
        return info.task == "classify"

    def _pooling_params(self, request: ClassificationRequest, info: PoolingInfo) -> PoolingParams:
        return PoolingParams(task="classify", use_activation=request.use_activation)

    def _build_response(self, ctx: PoolingServeContext[ClassificationRequest]) -> bytes:
        return msgspec.json.encode(
            ClassificationResponse(
                id=ctx.request_id,
                created=ctx.created,
                model=ctx.model_name,
                data=[_classes(index, output, ctx.info) for index, output in enumerate(ctx.outputs)],
                usage=ctx.usage,
            )
        )


def _classes(index: int, output: EngineOutput, info: PoolingInfo) -> ClassificationData:
    values = values_of(output)
    label = info.id2label.get(int(values.argmax()))
    return ClassificationData(index=index, label=label, probs=values.tolist(), num_classes=len(values))
