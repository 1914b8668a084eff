"""POST /invocations, SageMaker's only route: the body's fields tell for which API it is, as in vLLM."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from server.apis.pooling.embedding import EmbeddingRequest
from server.apis.pooling.pooling import ClassificationRequest, PoolingRequest
from server.apis.pooling.scoring import RerankRequest, ScoreRequest
from server.errors import RequestError
from server.generation.chat_request import ChatRequest
from server.generation.completion_request import CompletionRequest
from server.operation.request_context import RequestContext
from server.routes.endpoint import Handler, Intake, ResponseBody

if TYPE_CHECKING:
    from server.http_body.decoding import RequestDecoder

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


class InvocationDecoder:
    """Decodes a body as the kind of request that its fields and the model suggest."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._decoders: dict[type, RequestDecoder[Any]] = {}

    def decode(self, body: bytes) -> Any:
        """The request.

        Raises:
            RequestError: the body is no object, invalid, or fits none of the model's APIs.
        """
        model = self._find_model(body)
        if model not in self._decoders:
            self._decoders[model] = self._intake.decoder(model)
        return self._decoders[model].decode(body)

    def _find_model(self, body: bytes) -> type:
        try:
            given = msgspec.json.decode(body, type=dict[str, msgspec.Raw]).keys()
        except (msgspec.DecodeError, UnicodeDecodeError) as err:
            raise RequestError(f"The request body is not a valid JSON object: {err}") from err
        models = self._models_by_field()
        found = next((model for name, model in models.items() if name in given), None)
        if found is None:
            fields = ", ".join(f"`{name}`" for name in models)
            raise RequestError(f"Cannot find suitable handler for request. Expected one of the fields {fields}.")
        return found

    def _models_by_field(self) -> dict[str, type]:
        pooling = self._intake.engine.info.pooling
        if pooling is None:
            return _GENERATING
        model = _OF_TASK.get(pooling.task, PoolingRequest)
        return _SCORING | {"input": model, "messages": model}


def dispatch(handlers: Mapping[type, Handler[Any]]) -> Handler[Any]:
    """The handler that passes a request to the handler of its kind."""

    async def handle(request: Any, context: RequestContext) -> ResponseBody:
        return await handlers[type(request)](request, context)

    return handle
