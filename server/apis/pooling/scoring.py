"""Answers /score and /rerank, which rate the relevance of texts to a query.

Three kinds of models do this. A cross-encoder reads query and text at once and returns a score. A bi-encoder
returns one vector per text. A late-interaction model returns one vector per token. This module compares the
vectors.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

from msgspec import Meta

from base.errors import RequestError
from server.apis.pooling.serving import PoolingFields, PoolingServeContext, PoolingServingBase, PromptReader, values_of
from server.terms.http_body.request_body import Counted
from server.terms.types import EngineOutput, PoolingInfo
from server.text.renderers.tokenizers.tokenizer import Encoded

ScoreInput = str | dict[str, Any]
ScoreInputs = ScoreInput | list[ScoreInput]
TokenLimit = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]

_PAIRS = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))
"""Pairs of names that a request may use for its two inputs."""


class ScoringFields(PoolingFields, kw_only=True):
    """The base of score and rerank requests."""

    max_tokens_per_query: TokenLimit = 0
    """The number of tokens to which queries are truncated. With 0, queries are not truncated."""
    max_tokens_per_doc: TokenLimit = 0
    instruction: str | None = None
    """The same as `chat_template_kwargs.instruction`, which takes precedence."""
    chat_template_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_tokens_per_query", "max_tokens_per_doc"):
            if getattr(self, name) < 0:
                raise RequestError(f"{name} must be a non-negative integer", param=name)
        for name, texts in zip(self.names, (self.first, self.second), strict=True):
            if not texts:
                raise RequestError(f"At least one text must be given: `{name}` is empty.", param=name)
        if len(self.first) not in (1, len(self.second)):
            raise RequestError(
                f"Input lengths must be either 1:1, 1:N or N:N, got {len(self.first)}:{len(self.second)}.",
                param=self.names[0],
            )

    @property
    def names(self) -> tuple[str, str]:
        """The names that this request uses for its two inputs."""
        raise NotImplementedError

    @property
    def first(self) -> list[str]:
        """The texts of the first input: one text, or as many texts as in `second`."""
        return _texts(getattr(self, self.names[0]), self.names[0])

    @property
    def second(self) -> list[str]:
        """The texts of the second input, with which the texts of `first` are compared."""
        return _texts(getattr(self, self.names[1]), self.names[1])

    @property
    def num_sequences(self) -> int:
        return len(self.first) + len(self.second)

    def counted(self) -> Iterator[Counted]:
        for name, texts in zip(self.names, (self.first, self.second), strict=True):
            yield Counted("max_prompts", name, len(texts))

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """Variables for the operator's template that renders pairs, if there is such a template."""
        instruction = {} if self.instruction is None else {"instruction": self.instruction}
        return instruction | (self.chat_template_kwargs or {})


class ScoreRequest(ScoringFields, kw_only=True):
    """Texts to compare: one text with one or several texts, or the texts of two lists in pairs."""

    queries: ScoreInputs | None = None
    documents: ScoreInputs | None = None
    items: ScoreInputs | None = None
    data_1: ScoreInputs | None = None
    data_2: ScoreInputs | None = None
    text_1: ScoreInputs | None = None
    text_2: ScoreInputs | None = None

    def __post_init__(self) -> None:
        names = {name for pair in _PAIRS for name in pair}
        given = {name for name in names if getattr(self, name) is not None}
        if not any(given == set(pair) for pair in _PAIRS):
            raise RequestError(
                "Give `queries` with `documents` or `items`, or `data_1` with `data_2`, or `text_1` with `text_2`.",
                param=next(iter(sorted(given)), "queries"),
            )
        super().__post_init__()

    @property
    def names(self) -> tuple[str, str]:
        return next(pair for pair in _PAIRS if all(getattr(self, name) is not None for name in pair))


class RerankRequest(ScoringFields, kw_only=True):
    """Documents to sort by their relevance to a query."""

    query: ScoreInput
    documents: ScoreInputs
    top_n: Annotated[int, Meta(ge=0)] = 0
    """The number of documents to return. 0 returns all documents."""

    @property
    def names(self) -> tuple[str, str]:
        return ("query", "documents")


def _texts(given: ScoreInputs, name: str) -> list[str]:
    members = given if isinstance(given, list) else [given]
    for member in members:
        if not isinstance(member, str):
            raise RequestError(f"`{name}` must be texts: this model accepts no other kind of input.", param=name)
    return members  # type: ignore[return-value]


S = TypeVar("S", bound=ScoringFields)


class ScoringServing(PoolingServingBase[S]):
    """The base of /score and /rerank."""

    request_id_prefix = "score"

    def fits(self, info: PoolingInfo) -> bool:
        """Whether the model can score. A classifier can score only if it has a single class."""
        return info.task in ("embed", "token_embed") or (info.task == "classify" and info.num_labels == 1)

    def _preprocess_cmpl_online(self, ctx: PoolingServeContext[S]) -> list[Encoded]:
        """Tokenizes the pairs for a cross-encoder.

        For other models, tokenizes all first texts, and then all second texts.
        """
        request, info, reader = ctx.request, ctx.info, self._reader(ctx)
        first, second = (
            [reader.cut_text(text, getattr(request, limit), param=limit) for text in texts]
            for texts, limit in ((request.first, "max_tokens_per_query"), (request.second, "max_tokens_per_doc"))
        )
        if info.task == "classify":
            firsts = first * len(second) if len(first) == 1 else first
            return [_read_pair(request, reader, info, *pair) for pair in zip(firsts, second, strict=True)]
        named = zip(request.names, (first, second), strict=True)
        return [reader.read(text, param=name) for name, texts in named for text in texts]

    def _scores(self, ctx: PoolingServeContext[S]) -> list[float]:
        task, outputs = ctx.info.task, ctx.outputs
        if task == "classify":
            return [float(values_of(output)[0]) for output in outputs]
        num_queries = len(ctx.request.first)
        queries, documents = outputs[:num_queries], outputs[num_queries:]
        compare = _cosine if task == "embed" else _max_similarity
        pairs = zip(queries * len(documents) if len(queries) == 1 else queries, documents, strict=True)
        return [compare(query, document) for query, document in pairs]


class ScoreServing(ScoringServing[ScoreRequest]):
    """/score."""

    api_name = "Score"

    def _build_response(self, ctx: PoolingServeContext[ScoreRequest]) -> dict[str, Any]:
        scores = enumerate(self._scores(ctx))
        return ctx.list_of([{"index": index, "object": "score", "score": score} for index, score in scores])


class RerankServing(ScoringServing[RerankRequest]):
    """/rerank. Sorts the documents, the most relevant document first."""

    api_name = "Rerank (Score)"

    def _build_response(self, ctx: PoolingServeContext[RerankRequest]) -> dict[str, Any]:
        results: list[dict[str, Any]] = [
            {"index": index, "document": {"text": text, "multi_modal": None}, "relevance_score": score}
            for index, (score, text) in enumerate(zip(self._scores(ctx), ctx.request.second, strict=True))
        ]
        results.sort(key=lambda result: result["relevance_score"], reverse=True)
        return {
            "id": ctx.request_id,
            "model": ctx.model_name,
            "usage": {"prompt_tokens": ctx.num_tokens, "total_tokens": ctx.num_tokens},
            "results": results[: ctx.request.top_n or None],
        }


def _read_pair(request: ScoringFields, reader: PromptReader, info: PoolingInfo, first: str, second: str) -> Encoded:
    """Tokenizes a pair, with the operator's chat template if there is one.

    The model's own chat template is not used, because it often has another purpose.
    """
    param = request.names[1]
    if reader.has_template:
        return reader.read_by_template(first, second, request.template_kwargs)
    if not info.uses_sep_token:
        return reader.read(first + second, param=param)
    return reader.read_pair(first, second, param=param)


def _cosine(first: EngineOutput, second: EngineOutput) -> float:
    one, other = values_of(first), values_of(second)
    lengths = math.sqrt(float(one @ one) * float(other @ other))
    return float(one @ other) / max(lengths, 1e-8)


def _max_similarity(query: EngineOutput, document: EngineOutput) -> float:
    """Returns the sum, over all tokens of the query, of the highest similarity to a token of the document."""
    similarities = values_of(query) @ values_of(document).T
    return float(similarities.max(axis=-1).sum())
