"""/v1/embeddings, /pooling and /classify: their requests, and what they make of the model's output."""

import base64
from typing import Any, Final

import msgspec

from base.errors import RequestError
from server.apis.pooling.prompts import PromptReader
from server.apis.pooling.request import Dimensions, InputFields, VectorFields
from server.apis.pooling.serving import Endpoint, Pooled, tensor_of, values_of
from server.renderers.tokenizers.tokenizer import Encoded
from server.types import EngineOutput, PoolingInfo, PoolingParams


class EmbeddingRequest(VectorFields, kw_only=True):
    """Texts or token ids to embed."""

    dimensions: Dimensions | None = None
    """Truncate embeddings to this length; only for models that were trained for it."""
    use_activation: bool | None = None
    """Whether to normalize embeddings to length one; null is the model's default."""


class PoolingRequest(VectorFields, kw_only=True):
    """Prompts to pool as `task` specifies."""

    task: str | None = None
    dimensions: int | None = None
    use_activation: bool | None = None


class ClassificationRequest(InputFields, kw_only=True):
    """Texts or token ids to classify."""

    use_activation: bool | None = None
    """Whether to return probabilities; false returns logits."""


def _embedding_params(request: EmbeddingRequest, info: PoolingInfo) -> PoolingParams:
    """Raises RequestError if the model's embeddings cannot be cut to the length."""
    dimensions, problem = request.dimensions, None
    if dimensions is None:
        pass
    elif not info.is_matryoshka:
        problem = f"does not support Matryoshka embeddings; dimensions must be unset (received dimensions={dimensions})"
    elif not 1 <= dimensions <= info.embedding_size:
        problem = f"only supports dimensions in range [1, {info.embedding_size}], got {dimensions}"
    elif info.matryoshka_dimensions and dimensions not in info.matryoshka_dimensions:
        problem = f"only supports Matryoshka dimensions {list(info.matryoshka_dimensions)}, got {dimensions}"
    if problem is not None:
        raise RequestError(f"This model {problem}.", param="dimensions")
    return PoolingParams(task="embed", use_activation=request.use_activation, dimensions=dimensions)


def _embeddings(pooled: Pooled[EmbeddingRequest]) -> dict[str, Any]:
    return pooled.list_of(
        [
            {"index": index, "object": "embedding", "embedding": to_json(output, pooled.request)}
            for index, output in enumerate(pooled.outputs)
        ]
    )


def _pooling_params(request: PoolingRequest, info: PoolingInfo) -> PoolingParams:
    if request.dimensions is not None:
        raise RequestError("dimensions is currently not supported", param="dimensions")
    if request.task not in (None, info.task):
        raise RequestError(_why_not(request.task, info), param="task")
    return PoolingParams(task=info.task, use_activation=request.use_activation)


def _why_not(task: str | None, info: PoolingInfo) -> str:
    """Why a task is not the one that the model was started for."""
    if task in info.supported_tasks:
        return f"Try switching the model's pooling_task via --pooler-config.task {task}."
    return (
        f"Unsupported task: {task!r} Supported tasks: {', '.join(info.supported_tasks)}; others need `--engine vllm`."
    )


def _pooled_data(pooled: Pooled[PoolingRequest]) -> dict[str, Any]:
    return pooled.list_of(
        [
            {"index": index, "object": "pooling", "data": to_json(output, pooled.request)}
            for index, output in enumerate(pooled.outputs)
        ]
    )


def _classes(pooled: Pooled[ClassificationRequest]) -> dict[str, Any]:
    """The most likely class of each input, and the probability of each class."""
    data = []
    for index, values in enumerate(map(values_of, pooled.outputs)):
        label = pooled.info.id2label.get(int(values.argmax()))
        data.append({"index": index, "label": label, "probs": values.tolist(), "num_classes": len(values)})
    return pooled.list_of(data)


def to_json(output: EngineOutput, request: VectorFields) -> Any:
    """A list of numbers, or base64; encoded row by row, so that the event loop can run in between."""
    if request.encoding_format == "base64":
        return base64.b64encode(tensor_of(output).data).decode()
    values = values_of(output)
    if values.ndim == 1:
        return msgspec.Raw(msgspec.json.encode(values.tolist()))
    return msgspec.Raw(b"[" + b",".join(msgspec.json.encode(row.tolist()) for row in values) + b"]")


def _read_inputs(request: InputFields, reader: PromptReader, info: PoolingInfo) -> list[Encoded]:
    return [reader.read(prompt) for prompt in request.prompts]


EMBEDDINGS: Final = Endpoint(
    api_name="Embeddings",
    id_prefix="embd",
    fits=lambda info: info.task == "embed",
    params=_embedding_params,
    read=_read_inputs,
    body=_embeddings,
)
POOLING: Final = Endpoint(
    api_name="Pooling",
    id_prefix="pooling",
    fits=lambda info: True,
    params=_pooling_params,
    read=_read_inputs,
    body=_pooled_data,
)
CLASSIFICATION: Final = Endpoint(
    api_name="Classification",
    id_prefix="classify",
    fits=lambda info: info.task == "classify",
    params=lambda request, info: PoolingParams(task="classify", use_activation=request.use_activation),
    read=_read_inputs,
    body=_classes,
    convert="classify",
)
