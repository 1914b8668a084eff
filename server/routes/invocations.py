"""POST /invocations, SageMaker's only route: the body's fields tell for which API it is, as in vLLM."""

import msgspec

from server.apis.pooling.embedding import EmbeddingRequest
from server.apis.pooling.pooling import ClassificationRequest, PoolingRequest
from server.apis.pooling.scoring import RerankRequest, ScoreRequest
from server.errors import RequestError
from server.generation.chat_request import ChatRequest
from server.generation.completion_request import CompletionRequest
from server.types import PoolingInfo

_GENERATING: dict[str, type] = {
    "messages": ChatRequest,
    "prompt": CompletionRequest,
    "prompt_embeds": CompletionRequest,
}
_SCORING: dict[str, type] = {
    "query": RerankRequest,
    "queries": ScoreRequest,
    "data_1": ScoreRequest,
    "text_1": ScoreRequest,
}
"""A field that each kind of request must have -> the request."""
_OF_TASK: dict[str, type] = {"embed": EmbeddingRequest, "classify": ClassificationRequest}


def find_model(body: bytes, pooling: PoolingInfo | None) -> type:
    """The kind of request that the body's fields suggest; `pooling` is None for a model that generates.

    Raises:
        RequestError: the body is no object, or fits none of the model's APIs.
    """
    try:
        given = msgspec.json.decode(body, type=dict[str, msgspec.Raw]).keys()
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        raise RequestError(f"The request body is not a valid JSON object: {err}") from err
    models = _models_by_field(pooling)
    found = next((model for name, model in models.items() if name in given), None)
    if found is None:
        fields = ", ".join(f"`{name}`" for name in models)
        raise RequestError(f"Cannot find suitable handler for request. Expected one of the fields {fields}.")
    return found


def _models_by_field(pooling: PoolingInfo | None) -> dict[str, type]:
    if pooling is None:
        return _GENERATING
    model = _OF_TASK.get(pooling.task, PoolingRequest)
    return _SCORING | {"input": model, "messages": model}
