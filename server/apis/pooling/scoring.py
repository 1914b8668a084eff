"""Answers /score and /rerank: the relevance of texts to a query, by three kinds of model.

A cross-encoder reads both texts at once. A bi-encoder makes one vector per text. Late interaction makes one
vector per token. The engine, which keeps the query's vectors, compares them, or else this module does.
"""

from typing import ClassVar, TypeVar

import msgspec
from msgspec.structs import replace

from server.apis.pooling.base import PoolingServeContext, PoolingServingBase
from server.apis.pooling.prompts import PooledPrompt, PromptReader
from server.apis.pooling.scoring_bodies import (
    RerankDocument,
    RerankRequest,
    RerankResponse,
    RerankResult,
    RerankUsage,
    ScoreData,
    ScoreRequest,
    ScoreResponse,
)
from server.apis.pooling.vectors import cosine, max_similarity, values_of
from server.types import LateInteraction, PoolingInfo, PoolingParams

S = TypeVar("S", bound=ScoreRequest | RerankRequest)


class ScoringServingBase(PoolingServingBase[S]):
    """The base of both endpoints that score pairs."""

    request_id_prefix: ClassVar[str] = "score"

    def _is_supported(self, info: PoolingInfo) -> bool:
        """Whether the model scores pairs: the class of a classifier is a score only if it has no other."""
        return info.task in ("embed", "token_embed") or (info.task == "classify" and info.num_labels == 1)

    def _pooling_params(self, request: S, info: PoolingInfo) -> PoolingParams:
        return PoolingParams(task=info.task, use_activation=request.use_activation)

    def _read_prompts(self, ctx: PoolingServeContext[S], reader: PromptReader) -> None:
        request = ctx.request
        names = request.names
        first = [
            reader.cut_text(text, request.max_tokens_per_query, param="max_tokens_per_query") for text in request.first
        ]
        second = [
            reader.cut_text(text, request.max_tokens_per_doc, param="max_tokens_per_doc") for text in request.second
        ]
        if ctx.pooling_params.task == "classify":
            firsts = first * len(second) if len(first) == 1 else first
            pairs = zip(firsts, second, strict=True)
            ctx.prompts = [self._read_pair(reader, ctx, one, other) for one, other in pairs]
            return
        ctx.num_queries = len(first)
        ctx.prompts = [reader.read(text, param=names[0]) for text in first]
        ctx.prompts += [reader.read(text, param=names[1]) for text in second]

    def _read_pair(self, reader: PromptReader, ctx: PoolingServeContext[S], first: str, second: str) -> PooledPrompt:
        """Uses the operator's chat template only: the model's own is often meant for something else."""
        param = ctx.request.names[1]
        if self._renderer.config.chat_template is not None:
            return reader.read_by_template(first, second, ctx.request.template_kwargs)
        if not ctx.info.uses_sep_token:
            return reader.read(first + second, param=param)
        return reader.read_pair(first, second, param=param)

    async def _run_engine(self, ctx: PoolingServeContext[S]) -> None:
        if self._scores_in_engine(ctx):
            await self._run_late_interaction(ctx)
        else:
            await super()._run_engine(ctx)

    def _scores_in_engine(self, ctx: PoolingServeContext[S]) -> bool:
        return ctx.pooling_params.task == "token_embed" and self._config.generation.enable_flash_late_interaction

    async def _run_late_interaction(self, ctx: PoolingServeContext[S]) -> None:
        """Runs the queries, which the engine keeps, then the documents, for which it returns the scores."""
        ids = self._new_ids(ctx, len(ctx.prompts))
        num_queries, query_ids = ctx.num_queries, ids[: ctx.num_queries]
        queries = [LateInteraction(query_id, "query") for query_id in query_ids]
        num_documents = len(ids) - num_queries
        of_documents = query_ids * num_documents if num_queries == 1 else query_ids
        documents = [LateInteraction(query_id, "document") for query_id in of_documents]
        params = [replace(ctx.pooling_params, late_interaction=part) for part in queries + documents]
        try:
            ctx.outputs = await self._pool(ctx, ctx.prompts[:num_queries], query_ids, params[:num_queries])
            ctx.outputs += await self._pool(ctx, ctx.prompts[num_queries:], ids[num_queries:], params[num_queries:])
        finally:
            self._engine.drop_queries(query_ids)

    def _scores(self, ctx: PoolingServeContext[S]) -> list[float]:
        """One score per pair."""
        task, outputs = ctx.pooling_params.task, ctx.outputs
        if task == "classify":
            return [float(values_of(output)[0]) for output in outputs]
        queries, documents = outputs[: ctx.num_queries], outputs[ctx.num_queries :]
        if self._scores_in_engine(ctx):
            return [float(values_of(output)) for output in documents]
        compare = cosine if task == "embed" else max_similarity
        pairs = zip(queries * len(documents) if len(queries) == 1 else queries, documents, strict=True)
        return [compare(query, document) for query, document in pairs]


class ScoreServing(ScoringServingBase[ScoreRequest]):
    """Answers /score."""

    api_name = "Score"

    def _build_response(self, ctx: PoolingServeContext[ScoreRequest]) -> bytes:
        return ctx.encode(ScoreResponse, [ScoreData(index=i, score=score) for i, score in enumerate(self._scores(ctx))])


class RerankServing(ScoringServingBase[RerankRequest]):
    """Answers /rerank."""

    api_name = "Rerank (Score)"

    def _build_response(self, ctx: PoolingServeContext[RerankRequest]) -> bytes:
        scored = zip(self._scores(ctx), ctx.request.second, strict=True)
        results = [
            RerankResult(index=index, document=RerankDocument(text=text), relevance_score=score)
            for index, (score, text) in enumerate(scored)
        ]
        results.sort(key=lambda result: result.relevance_score, reverse=True)
        usage = ctx.usage
        return msgspec.json.encode(
            RerankResponse(
                id=ctx.request_id,
                model=ctx.model_name,
                usage=RerankUsage(prompt_tokens=usage.prompt_tokens, total_tokens=usage.total_tokens),
                results=results[: ctx.request.top_n or None],
            )
        )
