"""Answers /generative_scoring: generates one token per item, for the probabilities of the labels."""

import math
from collections.abc import Sequence

from server.apis.generative_scoring_bodies import GenerativeScoringRequest
from server.apis.pooling.scoring_bodies import ScoreData, ScoreResponse
from server.errors import RequestError
from server.generation.completion_request import CompletionRequest
from server.generation.generation import SequenceDelta
from server.generation.preparation import GenerationBuilder
from server.generation.streams import collect
from server.http_body.usage import Usage
from server.operation.inference import Inference
from server.operation.models import unix_time
from server.operation.request_context import RequestContext
from server.renderers.prompts import Prompt, TextOptions


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
        self._inference.models.check_generative("Generative Scoring")
        self._inference.models.check(request.model)
        _check_labels(request.label_token_ids, self._inference.engine.info.vocab_size)
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
        num_prompt_tokens = sum(len(ids) for ids in token_ids)
        num_tokens = sum(len(delta.token_ids) for delta in deltas)
        return ScoreResponse(
            id=generation.request_id,
            created=unix_time(),
            model=self._inference.models.default_name,
            data=[ScoreData(index=index, score=_score(delta, request)) for index, delta in enumerate(deltas)],
            usage=Usage(
                prompt_tokens=num_prompt_tokens,
                total_tokens=num_prompt_tokens + num_tokens,
                completion_tokens=num_tokens,
            ),
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


def _check_labels(token_ids: Sequence[int], vocab_size: int) -> None:
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise RequestError(
                f"label_token_id {token_id} is out of vocabulary range [0, {vocab_size}). "
                "Please provide valid token IDs.",
                param="label_token_ids",
            )


def _score(delta: SequenceDelta, request: GenerativeScoringRequest) -> float:
    """The probability of the first label, among all tokens or among the labels."""
    assert delta.logprobs, "the engine sent no log-probabilities"
    logprobs = dict(delta.logprobs[0].top)
    labels = dict.fromkeys(request.label_token_ids)
    first = logprobs[request.label_token_ids[0]]
    if not request.apply_softmax:
        return math.exp(first)
    return 1 / sum(math.exp(min(logprobs[label] - first, _MAX_EXPONENT)) for label in labels)


_MAX_EXPONENT = 700.0
"""A larger one has no float."""
