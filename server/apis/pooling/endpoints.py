"""The requests to /v1/embeddings, /pooling and /classify, and the responses to them."""

import base64
from typing import Any, TypeVar

import msgspec

from base.errors import RequestError
from server.apis.pooling.serving import (
    Dimensions,
    InputFields,
    PoolingServeContext,
    PoolingServingBase,
    VectorFields,
    tensor_of,
    values_of,
)
from server.terms.types import EngineOutput, PoolingInfo, PoolingParams
from server.text.renderers.tokenizers.tokenizer import Encoded

InputT = TypeVar("InputT", bound=InputFields)


class EmbeddingRequest(VectorFields, kw_only=True):
    """Texts or token ids to embed."""

    dimensions: Dimensions | None = None
    """The length to which embeddings are truncated, for models that were trained for this."""


class PoolingRequest(VectorFields, kw_only=True):
    """Prompts to pool for the `task`."""

    task: str | None = None
    dimensions: int | None = None


class ClassificationRequest(InputFields, kw_only=True):
    """Texts or token ids to classify."""


class InputServing(PoolingServingBase[InputT]):
    """The base of endpoints whose prompts are the members of `input`."""

    def _preprocess_cmpl_online(self, ctx: PoolingServeContext[InputT]) -> list[Encoded]:
        reader = self._reader(ctx)
        return [reader.read(prompt) for prompt in ctx.request.prompts]


class EmbeddingServing(InputServing[EmbeddingRequest]):
    """/v1/embeddings."""

    api_name = "Embeddings"
    request_id_prefix = "embd"

    def fits(self, info: PoolingInfo) -> bool:
        return info.task == "embed"

    def pooling_params(self, request: EmbeddingRequest, info: PoolingInfo) -> PoolingParams:
        """Returns the parameters. Raises RequestError if embeddings cannot have the requested length."""
        dimensions, problem = request.dimensions, None
        if dimensions is None:
            pass
        elif not info.is_matryoshka:
            problem = (
                f"does not support Matryoshka embeddings; dimensions must be unset (received dimensions={dimensions})"
            )
        elif not 1 <= dimensions <= info.embedding_size:
            problem = f"only supports dimensions in range [1, {info.embedding_size}], got {dimensions}"
        elif info.matryoshka_dimensions and dimensions not in info.matryoshka_dimensions:
            problem = f"only supports Matryoshka dimensions {list(info.matryoshka_dimensions)}, got {dimensions}"
        if problem is not None:
            raise RequestError(f"This model {problem}.", param="dimensions")
        return PoolingParams(task="embed", use_activation=request.use_activation, dimensions=dimensions)

    def _build_response(self, ctx: PoolingServeContext[EmbeddingRequest]) -> dict[str, Any]:
        return _list_of_vectors(ctx, "embedding", member="embedding")


class PoolingServing(InputServing[PoolingRequest]):
    """/pooling."""

    api_name = "Pooling"
    request_id_prefix = "pooling"

    def pooling_params(self, request: PoolingRequest, info: PoolingInfo) -> PoolingParams:
        if request.dimensions is not None:
            raise RequestError("dimensions is currently not supported", param="dimensions")
        if request.task not in (None, info.task):
            raise RequestError(_why_not(request.task, info), param="task")
        return super().pooling_params(request, info)

    def _build_response(self, ctx: PoolingServeContext[PoolingRequest]) -> dict[str, Any]:
        return _list_of_vectors(ctx, "pooling", member="data")


class ClassificationServing(InputServing[ClassificationRequest]):
    """/classify. Returns the most likely class of each input, with the probabilities of all classes."""

    api_name = "Classification"
    request_id_prefix = "classify"
    convert = "classify"

    def fits(self, info: PoolingInfo) -> bool:
        return info.task == "classify"

    def _build_response(self, ctx: PoolingServeContext[ClassificationRequest]) -> dict[str, Any]:
        data = []
        for index, values in enumerate(map(values_of, ctx.outputs)):
            label = ctx.info.id2label.get(int(values.argmax()))
            data.append({"index": index, "label": label, "probs": values.tolist(), "num_classes": len(values)})
        return ctx.list_of(data)


def _list_of_vectors(ctx: PoolingServeContext[Any], kind: str, *, member: str) -> dict[str, Any]:
    data = []
    for index, output in enumerate(ctx.outputs):
        data.append({"index": index, "object": kind, member: to_json(output, ctx.request)})
    return ctx.list_of(data)


def _why_not(task: str | None, info: PoolingInfo) -> str:
    """Returns why the server rejects this task. The model runs for another task."""
    if task in info.supported_tasks:
        return f"Try switching the model's pooling_task via --pooler-config.task {task}."
    return (
        f"Unsupported task: {task!r} Supported tasks: {', '.join(info.supported_tasks)}. Others need `--engine vllm`."
    )


def to_json(output: EngineOutput, request: VectorFields) -> Any:
    """Returns a list of numbers, or base64. Encodes row by row, so that the event loop can run in between."""
    if request.encoding_format == "base64":
        return base64.b64encode(tensor_of(output).data).decode()
    values = values_of(output)
    if values.ndim == 1:
        return msgspec.Raw(msgspec.json.encode(values.tolist()))
    rows = (msgspec.json.encode(row.tolist()) for row in values)
    return msgspec.Raw(b"[" + b",".join(rows) + b"]")
