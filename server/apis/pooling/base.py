"""The base of all pooling endpoints: the order of the steps, and the thread in which each runs."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar
from uuid import uuid4

import msgspec

from server.apis.pooling.prompts import PromptReader
from server.apis.pooling.request import D, InputFields, ListResponse, PoolingFields
from server.errors import EngineError, RequestError, UnsupportedApiError
from server.generation.sequences import SequenceRecorder
from server.http_body.response_parts import Usage
from server.operation.concurrently import run_concurrently
from server.operation.inference import Inference
from server.operation.models import unix_time
from server.operation.request_context import RequestContext
from server.renderers.pool import make_async
from server.renderers.prompts import ChatOptions
from server.renderers.tokenizers.tokenizer import Encoded
from server.request_ids import set_request_id
from server.types import EngineOutput, FinishReason, PoolingInfo, PoolingParams

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=PoolingFields)


@dataclass(kw_only=True)
class PoolingServeContext(Generic[T]):
    """Passed from step to step; each fills in what the next one needs. Used by one thread at a time."""

    request: T
    request_id: str
    """The id in the response."""
    model_name: str
    created: int
    pooling_params: PoolingParams
    """The same for all prompts, unless a step derives others from it."""
    info: PoolingInfo
    request_context: RequestContext
    prompts: list[Encoded] = field(default_factory=list)
    """Filled in by the first step."""
    outputs: list[EngineOutput] = field(default_factory=list)
    """The engine's outputs, in the order of the prompts."""
    num_queries: int = 0
    """For scores: how many of the prompts are queries."""

    @property
    def usage(self) -> Usage:
        """The number of prompt tokens."""
        return Usage.of(sum(len(prompt.token_ids) for prompt in self.prompts))

    def encode(self, kind: type[ListResponse[D]], data: list[D]) -> bytes:
        """The response with these members."""
        return msgspec.json.encode(
            kind(id=self.request_id, created=self.created, model=self.model_name, data=data, usage=self.usage)
        )


class PoolingServingBase(ABC, Generic[T]):
    """One per endpoint. `create` runs on the event loop.

    Each `..._async` runs a blocking method in the renderer pool: tokenizing before the engine, and encoding
    long vectors after it.
    """

    request_id_prefix: ClassVar[str]
    api_name: ClassVar[str]

    def __init__(self, inference: Inference) -> None:
        self._config = inference.config
        self._models = inference.models
        self._renderer = inference.renderer
        self._engine = inference.engine
        self._metrics = inference.metrics
        self._fill_prompts_async = make_async(self._fill_prompts, self._renderer.executor)
        self._build_response_async = make_async(self._build_response, self._renderer.executor)

    async def create(self, request: T, context: RequestContext) -> bytes:
        """The whole response, encoded.

        Raises:
            RequestError: the request is invalid, or does not fit the model.
            EngineError: the engine failed.
        """
        ctx = self._create_context(request, context)
        with context.times.rendering():
            await self._fill_prompts_async(ctx)
        context.lease.queue_tokens(sum(len(prompt.token_ids) for prompt in ctx.prompts))
        await self._run_engine(ctx)
        return await self._build_response_async(ctx)

    @abstractmethod
    def _pooling_params(self, request: T, info: PoolingInfo) -> PoolingParams:
        """The pooling parameters of the prompts; raises RequestError if the model does not support them."""

    @abstractmethod
    def _build_response(self, ctx: PoolingServeContext[T]) -> bytes:
        """The response, encoded; runs in the pool."""

    def _fill_prompts(self, ctx: PoolingServeContext[T]) -> None:
        """Tokenizes the prompts; runs in the pool."""
        most = self._max_input_len(ctx.info)
        self._read_prompts(ctx, PromptReader(self._renderer, ctx.request, self._engine.info, max_input_len=most))

    def _max_input_len(self, info: PoolingInfo) -> int | None:
        """Most tokens of a prompt, if that is not the model's context."""
        return None

    def _read_prompts(self, ctx: PoolingServeContext[T], reader: PromptReader) -> None:
        request = ctx.request
        assert isinstance(request, InputFields)
        if request.conversations:
            options = _chat_options(request)
            ctx.prompts = [reader.read_conversation(messages, options) for messages in request.conversations]
        else:
            ctx.prompts = [reader.read(prompt) for prompt in request.prompts]

    async def _run_engine(self, ctx: PoolingServeContext[T]) -> None:
        """Fills in the engine's outputs."""
        ids = self._new_ids(ctx, len(ctx.prompts))
        ctx.outputs = await self._pool(ctx, ctx.prompts, ids, [ctx.pooling_params] * len(ids))

    def _create_context(self, request: T, context: RequestContext) -> PoolingServeContext[T]:
        self._models.check(request.model)
        info = self._engine.info.pooling
        if info is None or not self._is_supported(info):
            raise UnsupportedApiError(self.api_name)
        request_id = f"{self.request_id_prefix}-{context.header_id or request.request_id or uuid4().hex}"
        set_request_id(request_id)
        if context.trace is not None:
            context.trace.request_id = request_id
        return PoolingServeContext(
            request=request,
            request_id=request_id,
            model_name=self._models.default_name,
            created=unix_time(),
            pooling_params=self._pooling_params(request, info),
            info=info,
            request_context=context,
        )

    def _is_supported(self, info: PoolingInfo) -> bool:
        """Whether the model fits this endpoint."""
        return True

    def _new_ids(self, ctx: PoolingServeContext[T], num_ids: int) -> list[str]:
        """Unique ids for the engine, because clients may choose theirs."""
        unique = f"{ctx.request_id}-{uuid4().hex[:8]}"
        return [f"{unique}-{index}" for index in range(num_ids)]

    async def _pool(
        self,
        ctx: PoolingServeContext[T],
        prompts: Sequence[Encoded],
        ids: Sequence[str],
        params: Sequence[PoolingParams],
    ) -> list[EngineOutput]:
        """Runs prompts concurrently; the first failure, or a client that disconnects, aborts them all."""
        self._log(ctx, prompts, params)
        return await run_concurrently(
            self._pool_one(ctx.request_context, *work) for work in zip(ids, prompts, params, strict=True)
        )

    async def _pool_one(
        self, context: RequestContext, engine_id: str, prompt: Encoded, params: PoolingParams
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

    def _log(self, ctx: PoolingServeContext[T], prompts: Sequence[Encoded], params: Sequence[PoolingParams]) -> None:
        if self._config.logging.enable_log_requests:
            for prompt, pooling in zip(prompts, params, strict=True):
                logger.info("request %s: %d prompt tokens, %s", ctx.request_id, len(prompt.token_ids), pooling)


def _chat_options(request: InputFields) -> ChatOptions:
    return ChatOptions(
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        chat_template=request.chat_template,
        chat_template_kwargs=request.chat_template_kwargs or {},
    )


def check_dimensions(dimensions: int | None, info: PoolingInfo, model_name: str) -> None:
    """Raises RequestError if the model's embeddings cannot be cut to this length."""
    if dimensions is None:
        return
    problem = None
    if not info.is_matryoshka:
        problem = f"does not support Matryoshka embeddings; dimensions must be unset (received dimensions={dimensions})"
    elif not 1 <= dimensions <= info.embedding_size:
        problem = f"only supports dimensions in range [1, {info.embedding_size}], got {dimensions}"
    elif info.matryoshka_dimensions and dimensions not in info.matryoshka_dimensions:
        problem = f"only supports Matryoshka dimensions {list(info.matryoshka_dimensions)}, got {dimensions}"
    if problem is not None:
        raise RequestError(f"Model {model_name!r} {problem}.", param="dimensions")
