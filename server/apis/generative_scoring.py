"""Answers /generative_scoring: generates one token per item, for the probabilities of the labels."""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated

from msgspec import Meta

from server.apis.pooling.scoring import ScoreData, ScoreResponse
from server.generation.completion_request import CompletionRequest
from server.generation.generation import GenerationBuilder, SequenceDelta
from server.generation.request import MAX_LOGPROB_TOKEN_IDS
from server.generation.sequences import collect
from server.http_body.fields import INEFFECTIVE, Counted, Hint, Priority, RequestBody, RequestId, TokenId
from server.http_body.response_parts import Usage
from server.operation.inference import Inference
from server.operation.models import unix_time
from server.operation.request_context import RequestContext
from server.renderers.prompts import Prompt, TextOptions, check_token_ids

_MAX_EXPONENT = 700.0
"""`math.exp` overflows above 709."""

LabelIds = Annotated[list[int], Meta(min_length=1, max_length=MAX_LOGPROB_TOKEN_IDS)]


class GenerativeScoringRequest(RequestBody, kw_only=True, forbid_unknown_fields=True):
    """A query and the items to score; each prompt is the query and an item."""

    model: str | None = None
    query: str | list[TokenId]
    items: Annotated[list[str | list[TokenId]], Meta(min_length=1)]
    label_token_ids: LabelIds
    """The tokens that may follow; the score is the probability of the first one."""
    apply_softmax: bool = True
    """Whether the probabilities of the labels add up to 1; false gives those among all tokens."""
    item_first: bool = False
    add_special_tokens: bool = True
    """Whether the query begins with the tokenizer's special tokens."""
    cache_salt: Hint = None
    priority: Annotated[Priority, INEFFECTIVE] = 0
    request_id: RequestId | None = None

    @property
    def num_sequences(self) -> int:
        return len(self.items)

    def counted(self) -> Iterator[Counted]:
        yield Counted("max_prompts", "items", len(self.items))


class GenerativeScoringServing:
    """One per server; every method runs on the event loop."""

    def __init__(self, inference: Inference, builder: GenerationBuilder) -> None:
        self._inference = inference
        self._builder = builder

    async def create(self, request: GenerativeScoringRequest, context: RequestContext) -> ScoreResponse:
        """The score of each item.

        Raises:
            RequestError: the request is invalid, or the model does not generate.
            EngineError: the engine failed.
        """
        self._inference.models.check_generative("Generative Scoring", request.model)
        vocab_size = self._inference.engine.info.vocab_size
        check_token_ids(request.label_token_ids, vocab_size=vocab_size, param="label_token_ids")
        with context.times.rendering():
            token_ids = await self._read_prompts(request)
            prompts = await self._inference.renderer.render_prompts_async(token_ids, TextOptions())
        completion = CompletionRequest(
            prompt=token_ids,  # type: ignore[arg-type]
            max_tokens=1,
            logprobs=len(request.label_token_ids),
            logprob_token_ids=request.label_token_ids,
            request_id=request.request_id,
        )
        generation = await self._builder.build(completion, prompts, context, id_prefix="generative-scoring")
        deltas = await collect(self._inference, generation)
        return ScoreResponse(
            id=generation.request_id,
            created=unix_time(),
            model=self._inference.models.default_name,
            data=[ScoreData(index=index, score=_score(delta, request)) for index, delta in enumerate(deltas)],
            usage=Usage.of(sum(map(len, token_ids)), sum(len(delta.token_ids) for delta in deltas)),
        )

    async def _read_prompts(self, request: GenerativeScoringRequest) -> list[list[int]]:
        """The tokens of the query together with those of each item, which have no special tokens."""
        [query] = await self._read([request.query], add_special_tokens=request.add_special_tokens)
        items = await self._read(request.items, add_special_tokens=False)
        return [item + query if request.item_first else query + item for item in items]

    async def _read(self, prompts: Sequence[Prompt], *, add_special_tokens: bool) -> list[list[int]]:
        """The tokens of each prompt; an empty one has none."""
        options = TextOptions(add_special_tokens=add_special_tokens)
        given = [prompt for prompt in prompts if prompt]
        rendered = iter(await self._inference.renderer.render_prompts_async(given, options) if given else ())
        return [next(rendered).token_ids if prompt else [] for prompt in prompts]


def _score(delta: SequenceDelta, request: GenerativeScoringRequest) -> float:
    """The probability of the first label, among all tokens or among the labels."""
    assert delta.logprobs, "the engine sent no log-probabilities"
    logprobs = dict(delta.logprobs[0].top)
    labels = dict.fromkeys(request.label_token_ids)
    first = logprobs[request.label_token_ids[0]]
    if not request.apply_softmax:
        return math.exp(first)
    return 1 / sum(math.exp(min(logprobs[label] - first, _MAX_EXPONENT)) for label in labels)
