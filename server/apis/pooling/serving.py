"""What all pooling endpoints share: fields of requests, the reading of prompts, and the base class.

`PoolingServingBase` defines the order of the steps, and each step's thread.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar
from uuid import uuid4

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from base.errors import EngineError, PromptTooLongError, RequestError, UnsupportedApiError
from base.http_requests import REQUEST_ID
from server.generation.sequences import SequenceRecorder, Usage
from server.operation.admission import RequestContext
from server.operation.models import Inference, unix_time
from server.terms.concurrency import run_concurrently
from server.terms.http_body.request_body import (
    Counted,
    RequestBody,
    RequestId,
    Truncation,
    Unsupported,
    check_unsupported,
)
from server.terms.types import EngineInfo, EngineOutput, FinishReason, PoolingInfo, PoolingParams, TensorData
from server.text.renderers.prompts import ChatOptions, check_text_length, check_token_ids, check_unicode
from server.text.renderers.renderer import Renderer
from server.text.renderers.tokenizers.tokenizer import Cut, Encoded

logger = logging.getLogger(__name__)
EncodingFormat = Literal["float", "base64", "bytes", "bytes_only"]
Dimensions = Annotated[int, Meta(ge=1)]
AnyTokenId = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""A token id that is later compared with the model's vocabulary."""


class PoolingFields(RequestBody, kw_only=True):
    """The base of all requests to pooling endpoints."""

    model: str | None = None
    truncate_prompt_tokens: Truncation | None = None
    truncation_side: Literal["left", "right"] | None = None
    """The side on which tokens are cut off. `right`, the default here, keeps the first tokens."""
    padding: Unsupported = "do_not_pad"
    request_id: RequestId | None = None
    mm_processor_kwargs: Unsupported = None
    use_activation: bool | None = None
    """Whether to normalize embeddings to length one, or return probabilities. Null: the model's default."""
    normalize: Any = None

    def __post_init__(self) -> None:
        check_unsupported(self)
        if self.normalize is not None:
            raise RequestError("Parameter `normalize` was removed; use `use_activation` instead.", param="normalize")


class InputFields(PoolingFields, kw_only=True):
    """The base of requests with texts or token ids."""

    input: str | list[AnyTokenId | str | list[AnyTokenId]] | None = None
    add_special_tokens: bool | None = None
    """False leaves special tokens out. True and null add them."""
    messages: Unsupported = None
    media_io_kwargs: Unsupported = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input is None:
            raise RequestError("Missing required parameter: 'input'.", param="input")
        if self.input == []:
            raise RequestError("You must pass at least one prompt: `input` is empty.", param="input")
        types = {type(member) for member in self.input} if isinstance(self.input, list) else set()
        if len(types) > 1:
            raise RequestError("`input` must hold texts, token ids, or lists of token ids, not a mix.", param="input")

    @property
    def num_sequences(self) -> int:
        return len(self.prompts)

    def counted(self) -> Iterator[Counted]:
        yield Counted("max_prompts", "input", self.num_sequences)

    @property
    def prompts(self) -> list[str | list[int]]:
        assert self.input is not None
        if isinstance(self.input, str) or isinstance(self.input[0], int):
            return [self.input]  # type: ignore[list-item]
        return self.input  # type: ignore[return-value]


class VectorFields(InputFields, kw_only=True):
    """The base of requests for vectors, with the encoding of the vectors."""

    encoding_format: EncodingFormat = "float"
    """`base64` encodes the bytes of float32. vLLM also has `bytes` and `bytes_only`."""
    embed_dtype: Unsupported = "float32"
    endianness: Unsupported = "native"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoding_format not in ("float", "base64"):
            raise RequestError(
                f"`encoding_format` {self.encoding_format} needs `--engine vllm`. The embedded engine has float and "
                "base64.",
                param="encoding_format",
            )


class PromptReader:
    """Reads the prompts of one request, in one thread of the renderer pool.

    Every method raises RequestError for a prompt that is empty, too long or not supported by the model.
    """

    def __init__(self, renderer: Renderer, request: PoolingFields, info: EngineInfo) -> None:
        """Raises RequestError if `truncate_prompt_tokens` exceeds the model's limit."""
        limit, most = request.truncate_prompt_tokens, info.max_model_len
        if limit is not None and limit > most:
            raise RequestError(
                "truncate_prompt_tokens value is greater than max_model_len. Please request a smaller truncation size.",
                param="truncate_prompt_tokens",
            )
        self.has_template = renderer.config.chat_template is not None
        """Whether the operator has given a chat template."""
        self._renderer = renderer
        self._tokenizer = renderer.tokenizer
        self._max_tokens = most
        self._vocab_size = min(renderer.tokenizer.vocab_size, info.vocab_size)
        self._does_lower_case = info.pooling is not None and info.pooling.does_lower_case
        self._add_special_tokens = not isinstance(request, InputFields) or request.add_special_tokens is not False
        self._cut: Cut | None = None
        if limit is not None:
            self._cut = Cut(most if limit == -1 else limit, request.truncation_side or "right")

    def read(self, prompt: str | list[int], *, param: str = "input") -> Encoded:
        """Tokenizes a text, or checks token ids."""
        if isinstance(prompt, str):
            return self._encode(prompt, param, add_special_tokens=self._add_special_tokens)
        check_token_ids(prompt, vocab_size=self._vocab_size, param=param)
        return self._checked(Encoded(prompt if self._cut is None else self._cut.apply(prompt)), param)

    def read_by_template(self, first: str, second: str, template_kwargs: dict[str, Any]) -> Encoded:
        """Renders a query and a document with the operator's chat template."""
        messages = [{"role": "query", "content": first}, {"role": "document", "content": second}]
        options = ChatOptions(add_generation_prompt=False, chat_template_kwargs=template_kwargs)
        text = self._renderer.render_messages(messages, options)
        assert isinstance(text, str), "it writes the operator's template"
        return self._encode(text, "messages", add_special_tokens=True)

    def read_pair(self, first: str, second: str, *, param: str) -> Encoded:
        """Tokenizes a pair, with the tokenizer's special tokens between the two texts."""
        self._check_text(first + second, param)
        texts = self._as_cased(first), self._as_cased(second)
        return self._checked(self._tokenizer.encode_pair(*texts, cut=self._cut), param)

    def cut_text(self, text: str, num_tokens: int, *, param: str) -> str:
        """Cuts a text after `num_tokens` tokens. 0 returns the whole text."""
        if not num_tokens:
            return text
        if num_tokens >= self._max_tokens:
            most = self._max_tokens
            raise RequestError(f"{param} ({num_tokens}) must be less than max_model_len ({most}).", param=param)
        check_unicode(text, param)
        return self._tokenizer.cut_text(text, num_tokens)

    def _encode(self, text: str, param: str, *, add_special_tokens: bool) -> Encoded:
        self._check_text(text, param)
        token_ids = self._tokenizer.encode(self._as_cased(text), add_special_tokens=add_special_tokens, cut=self._cut)
        return self._checked(Encoded(token_ids), param)

    def _as_cased(self, text: str) -> str:
        return text.lower() if self._does_lower_case else text

    def _check_text(self, text: str, param: str) -> None:
        """Rejects a text too long for any tokenization to fit. Tokenizing the text could take seconds."""
        check_unicode(text, param)
        if self._cut is None:
            most_chars = self._tokenizer.max_token_chars
            check_text_length(text, max_model_len=self._max_tokens, max_token_chars=most_chars)

    def _checked(self, prompt: Encoded, param: str) -> Encoded:
        num_tokens, most = len(prompt.token_ids), self._max_tokens
        if num_tokens > most:
            raise PromptTooLongError(num_tokens, most)
        if not num_tokens:
            raise RequestError(f"`{param}` has no tokens", param=param)
        return prompt


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
