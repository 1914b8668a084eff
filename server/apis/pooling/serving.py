"""Answers all pooling endpoints: the order of the steps, and the thread in which each runs."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import uuid4

import msgspec
import numpy as np
import numpy.typing as npt

from base.errors import EngineError, UnsupportedApiError
from base.request_ids import REQUEST_ID
from server.apis.pooling.prompts import PromptReader
from server.apis.pooling.request import PoolingFields
from server.generation.sequences import SequenceRecorder, Usage
from server.http_body.response_body import take_turns
from server.operation.admission import RequestContext
from server.operation.models import Inference, unix_time
from server.renderers.tokenizers.tokenizer import Encoded
from server.types import EngineOutput, FinishReason, PoolingInfo, PoolingParams, TensorData

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=PoolingFields)


@dataclass(frozen=True, kw_only=True)
class Pooled(Generic[T]):
    """A request and its result."""

    id: str
    model_name: str
    request: T
    info: PoolingInfo
    num_tokens: int
    """Those of all prompts."""
    outputs: list[EngineOutput]
    """One per prompt."""

    def list_of(self, data: list[dict[str, Any]]) -> dict[str, Any]:
        """The response with one member per input, in the order of the inputs."""
        return {
            "id": self.id,
            "object": "list",
            "created": unix_time(),
            "model": self.model_name,
            "data": data,
            "usage": Usage.of(self.num_tokens),
        }


@dataclass(frozen=True, kw_only=True)
class Endpoint(Generic[T]):
    """What differs between the endpoints; `params` and `read` raise RequestError."""

    api_name: str
    id_prefix: str
    fits: Callable[[PoolingInfo], bool]
    """Whether it supports a model."""
    params: Callable[[T, PoolingInfo], PoolingParams]
    """The pooling parameters of all prompts."""
    read: Callable[[T, PromptReader, PoolingInfo], list[Encoded]]
    """Tokenizes the prompts; runs in the renderer pool."""
    body: Callable[[Pooled[T]], dict[str, Any]]
    """The response; runs in the renderer pool."""
    convert: str = "embed"
    """What `--convert` makes of a model that generates text, for this endpoint."""


class PoolingServing:
    """One per server; `create` runs on the event loop."""

    def __init__(self, inference: Inference) -> None:
        self._config = inference.config
        self._models = inference.models
        self._renderer = inference.renderer
        self._engine = inference.engine
        self._metrics = inference.metrics

    async def create(self, endpoint: Endpoint[T], request: T, context: RequestContext) -> bytes:
        """The whole response, encoded.

        Raises:
            RequestError: the request is invalid, or does not fit the model.
            EngineError: the engine failed.
        """
        self._models.check(request.model)
        info = self._engine.info.pooling
        if info is None:
            flags = f"`--runner pooling --convert {endpoint.convert}`"
            raise UnsupportedApiError(endpoint.api_name, f": it generates text, unless the server starts with {flags}")
        if not endpoint.fits(info):
            raise UnsupportedApiError(endpoint.api_name)
        request_id = f"{endpoint.id_prefix}-{context.header_id or request.request_id or uuid4().hex}"
        REQUEST_ID.set(request_id)
        params = endpoint.params(request, info)
        with context.times.rendering():
            prompts = await self._renderer.run_in_pool(self._read, endpoint, request, info)
        num_tokens = sum(len(prompt.token_ids) for prompt in prompts)
        context.lease.queue_tokens(num_tokens)
        outputs = await self._pool(request_id, prompts, params, context)

        def encode() -> bytes:
            pooled = Pooled(
                id=request_id,
                model_name=self._models.default_name,
                request=request,
                info=info,
                num_tokens=num_tokens,
                outputs=outputs,
            )
            return msgspec.json.encode(endpoint.body(pooled))

        return await self._renderer.run_in_pool(encode)

    def _read(self, endpoint: Endpoint[T], request: T, info: PoolingInfo) -> list[Encoded]:
        return endpoint.read(request, PromptReader(self._renderer, request, self._engine.info), info)

    async def _pool(
        self, request_id: str, prompts: Sequence[Encoded], params: PoolingParams, context: RequestContext
    ) -> list[EngineOutput]:
        """Runs prompts concurrently; the first failure, or a client that disconnects, aborts them all."""
        if self._config.logging.enable_log_requests:
            for prompt in prompts:
                logger.info("request %s: %d prompt tokens, %s", request_id, len(prompt.token_ids), params)
        unique = f"{request_id}-{uuid4().hex[:8]}"  # clients may choose their ids
        return await _run_concurrently(
            self._pool_one(f"{unique}-{index}", prompt, params, context) for index, prompt in enumerate(prompts)
        )

    async def _pool_one(
        self, engine_id: str, prompt: Encoded, params: PoolingParams, context: RequestContext
    ) -> EngineOutput:
        recorder = SequenceRecorder(self._metrics.engine, context, len(prompt.token_ids), max_tokens=None)
        reason: FinishReason = "abort"
        try:
            output = await self._engine.pool(engine_id, prompt.token_ids, params, token_type_ids=prompt.token_type_ids)
            recorder.record(output)
            reason = "stop"
            return output
        except EngineError:
            reason = "error"
            raise
        finally:
            recorder.finish(reason)


def values_of(output: EngineOutput) -> npt.NDArray[np.float32]:
    """A result of the engine as an array."""
    data = tensor_of(output)
    return np.frombuffer(data.data, np.float32).reshape(data.shape)


def tensor_of(output: EngineOutput) -> TensorData:
    """The tensor of a result, which must have one."""
    assert output.data is not None, "the engine sent no numbers"
    return output.data


async def _run_concurrently(works: Iterable[Coroutine[Any, Any, EngineOutput]]) -> list[EngineOutput]:
    """Their results, in order; the first failure, or a client that disconnects, cancels all of them."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) async for work in take_turns(works)]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
