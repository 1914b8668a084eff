"""The base class of all pooling endpoints. It defines the order of the steps, and each step's thread."""

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar
from uuid import uuid4

import msgspec
import numpy as np
import numpy.typing as npt

from base.errors import EngineError, UnsupportedApiError
from base.request_ids import REQUEST_ID
from server.apis.pooling.prompts import PromptReader
from server.apis.pooling.request import PoolingFields
from server.generation.sequences import SequenceRecorder, Usage
from server.operation.admission import RequestContext
from server.operation.models import Inference, unix_time
from server.terms.concurrency import run_concurrently
from server.terms.types import EngineOutput, FinishReason, PoolingInfo, PoolingParams, TensorData
from server.text.renderers.tokenizers.tokenizer import Encoded

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=PoolingFields)


@dataclass(kw_only=True)
class PoolingServeContext(Generic[T]):
    """The state of one request, which is passed from step to step. Only one thread at a time uses it."""

    request: T
    request_id: str
    """The id in the response."""
    model_name: str
    info: PoolingInfo
    pooling_params: PoolingParams
    prompts: list[Encoded] = field(default_factory=list)
    """Set by `_preprocess_cmpl_online`."""
    outputs: list[EngineOutput] = field(default_factory=list)
    """The engine's outputs, one per prompt."""

    @property
    def num_tokens(self) -> int:
        return sum(len(prompt.token_ids) for prompt in self.prompts)

    def list_of(self, data: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the response. Its list `data` has one member per input, in the order of the inputs."""
        return {
            "id": self.request_id,
            "object": "list",
            "created": unix_time(),
            "model": self.model_name,
            "data": data,
            "usage": Usage.of(self.num_tokens),
        }


class PoolingServingBase(ABC, Generic[T]):
    """An endpoint. `create` runs on the event loop. The steps before and after the engine run in the pool."""

    api_name: ClassVar[str]
    request_id_prefix: ClassVar[str]
    convert: ClassVar[str] = "embed"
    """The value of `--convert` that makes a generating model serve this endpoint."""

    def __init__(self, inference: Inference) -> None:
        self._config = inference.config
        self._models = inference.models
        self._renderer = inference.renderer
        self._engine = inference.engine
        self._metrics = inference.metrics

    async def create(self, request: T, context: RequestContext) -> bytes:
        """Answers a request. Returns the complete, encoded response."""
        ctx = self._create_context(request, context)
        with context.times.rendering():
            ctx.prompts = await self._renderer.pools.run(self._preprocess_cmpl_online, ctx)
        context.lease.queue_tokens(ctx.num_tokens)
        ctx.outputs = await self._pool(ctx, context)
        return await self._renderer.pools.run(lambda: msgspec.json.encode(self._build_response(ctx)))

    def fits(self, info: PoolingInfo) -> bool:
        """Whether the endpoint supports the model."""
        return True

    def pooling_params(self, request: T, info: PoolingInfo) -> PoolingParams:
        """Returns the pooling parameters for all prompts. Raises RequestError."""
        return PoolingParams(task=info.task, use_activation=request.use_activation)

    @abstractmethod
    def _preprocess_cmpl_online(self, ctx: PoolingServeContext[T]) -> list[Encoded]:
        """Tokenizes the prompts in the pool. Raises RequestError."""

    def _reader(self, ctx: PoolingServeContext[T]) -> PromptReader:
        return PromptReader(self._renderer, ctx.request, self._engine.info)

    @abstractmethod
    def _build_response(self, ctx: PoolingServeContext[T]) -> dict[str, Any]:
        """Builds the body of the response in the pool."""

    def _create_context(self, request: T, context: RequestContext) -> PoolingServeContext[T]:
        self._models.check(request.model)
        info = self._engine.info.pooling
        if info is None:
            flags = f"`--runner pooling --convert {self.convert}`"
            raise UnsupportedApiError(self.api_name, f": it generates text, unless the server starts with {flags}")
        if not self.fits(info):
            raise UnsupportedApiError(self.api_name)
        request_id = f"{self.request_id_prefix}-{context.header_id or request.request_id or uuid4().hex}"
        REQUEST_ID.set(request_id)
        return PoolingServeContext(
            request=request,
            request_id=request_id,
            model_name=self._models.default_name,
            info=info,
            pooling_params=self.pooling_params(request, info),
        )

    async def _pool(self, ctx: PoolingServeContext[T], context: RequestContext) -> list[EngineOutput]:
        """Pools the prompts concurrently. The first failure, or a disconnect, aborts all prompts."""
        if self._config.logging.enable_log_requests:
            for prompt in ctx.prompts:
                logger.info(
                    "request %s: %d prompt tokens, %s", ctx.request_id, len(prompt.token_ids), ctx.pooling_params
                )
        unique = f"{ctx.request_id}-{uuid4().hex[:8]}"  # clients may choose equal ids
        return await run_concurrently(
            self._pool_one(f"{unique}-{index}", prompt, ctx.pooling_params, context)
            for index, prompt in enumerate(ctx.prompts)
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
    """Returns the tensor of an engine's output as an array."""
    data = tensor_of(output)
    return np.frombuffer(data.data, np.float32).reshape(data.shape)


def tensor_of(output: EngineOutput) -> TensorData:
    """Returns the tensor of an engine's output. Raises AssertionError if the output has no tensor."""
    assert output.data is not None, "the engine sent no numbers"
    return output.data
