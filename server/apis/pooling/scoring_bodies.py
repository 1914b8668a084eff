"""Bodies of /score and /rerank."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from server.apis.pooling.request import ListResponse, PoolingFields
from server.errors import RequestError
from server.http_body.fields import Counted, Hint

ScoreInput = str | dict[str, Any]
ScoreInputs = ScoreInput | list[ScoreInput]
TokenLimit = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]

_PAIRS = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))
"""The names that the two inputs may have."""


class ScoringFields(PoolingFields, kw_only=True):
    """Base of score and rerank requests."""

    use_activation: bool | None = None
    max_tokens_per_query: TokenLimit = 0
    """Truncate queries to this many tokens; 0 does not truncate."""
    max_tokens_per_doc: TokenLimit = 0
    instruction: str | None = None
    """The same as `chat_template_kwargs.instruction`, which takes precedence."""
    chat_template_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_tokens_per_query", "max_tokens_per_doc"):
            if getattr(self, name) < 0:
                raise RequestError(f"{name} must be a non-negative integer", param=name)

    @property
    def names(self) -> tuple[str, str]:
        """The names of the two inputs in the request."""
        raise NotImplementedError

    @property
    def first(self) -> list[str]:
        """One text, or as many texts as `second` has."""
        return _texts(getattr(self, self.names[0]), self.names[0])

    @property
    def second(self) -> list[str]:
        """The texts that `first` is compared with."""
        return _texts(getattr(self, self.names[1]), self.names[1])

    @property
    def num_sequences(self) -> int:
        return len(self.first) + len(self.second)

    def counted(self) -> Iterator[Counted]:
        for name, texts in zip(self.names, (self.first, self.second), strict=True):
            yield Counted("max_prompts", name, len(texts))

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """Variables for the template that renders pairs, if the model has one."""
        instruction = {} if self.instruction is None else {"instruction": self.instruction}
        return instruction | (self.chat_template_kwargs or {})


class ScoreRequest(ScoringFields, kw_only=True):
    """Texts to compare: one with one, one with many, or each with its counterpart."""

    queries: ScoreInputs | None = None
    documents: ScoreInputs | None = None
    items: ScoreInputs | None = None
    data_1: ScoreInputs | None = None
    data_2: ScoreInputs | None = None
    text_1: ScoreInputs | None = None
    text_2: ScoreInputs | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {name for name in {name for pair in _PAIRS for name in pair} if getattr(self, name) is not None}
        if not any(given == set(pair) for pair in _PAIRS):
            raise RequestError(
                "Give `queries` with `documents` or `items`, or `data_1` with `data_2`, or `text_1` with `text_2`.",
                param=next(iter(sorted(given)), "queries"),
            )
        _check_lengths(self.first, self.second, self.names)

    @property
    def names(self) -> tuple[str, str]:
        return next(pair for pair in _PAIRS if all(getattr(self, name) is not None for name in pair))


class RerankRequest(ScoringFields, kw_only=True):
    """Documents to sort by their relevance to a query."""

    query: ScoreInput
    documents: ScoreInputs
    top_n: Annotated[int, Meta(ge=0)] = 0
    """Return only this many documents; 0 returns all."""
    return_documents: Hint = None
    max_chunks_per_doc: Hint = None
    rank_fields: Hint = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_lengths(self.first, self.second, self.names)

    @property
    def names(self) -> tuple[str, str]:
        return ("query", "documents")


class ScoreData(msgspec.Struct, kw_only=True):
    """One pair's score, or one item's."""

    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreResponse(ListResponse[ScoreData], kw_only=True):
    """The response; for /generative_scoring with one member per item."""


class RerankDocument(msgspec.Struct, kw_only=True):
    """A document from the request."""

    text: str | None = None
    multi_modal: None = None


class RerankResult(msgspec.Struct, kw_only=True):
    """One document's index and score."""

    index: int
    document: RerankDocument
    relevance_score: float


class RerankUsage(msgspec.Struct, kw_only=True):
    """Token counts."""

    prompt_tokens: int
    total_tokens: int


class RerankResponse(msgspec.Struct, kw_only=True):
    """The response, with the most relevant document first."""

    id: str
    model: str
    usage: RerankUsage
    results: list[RerankResult]


def _texts(given: ScoreInputs, name: str) -> list[str]:
    members = given if isinstance(given, list) else [given]
    for member in members:
        if not isinstance(member, str):
            raise RequestError(f"`{name}` must be texts: this model accepts no other kind of input.", param=name)
    return members  # type: ignore[return-value]


def _check_lengths(first: list[str], second: list[str], names: tuple[str, str]) -> None:
    for name, texts in zip(names, (first, second), strict=True):
        if not texts:
            raise RequestError(f"At least one text must be given: `{name}` is empty.", param=name)
    if len(first) > 1 and len(first) != len(second):
        raise RequestError(
            f"Input lengths must be either 1:1, 1:N or N:N, got {len(first)}:{len(second)}.", param=names[0]
        )
