"""The table of routes, with the objects that answer them."""

from functools import cache, partial
from typing import Any

from base.status_page.page import DATA_PATH
from server.apis.anthropic.messages_request import AnthropicRequest, CountTokensRequest
from server.apis.anthropic.serving import AnthropicServing
from server.apis.openai.chat import create_chat_completion
from server.apis.openai.completions import CompletionServing
from server.apis.pooling.endpoints import (
    ClassificationRequest,
    ClassificationServing,
    EmbeddingRequest,
    EmbeddingServing,
    PoolingRequest,
    PoolingServing,
)
from server.apis.pooling.scoring import RerankRequest, RerankServing, ScoreRequest, ScoreServing
from server.apis.responses.responses_request import ResponsesRequest
from server.apis.responses.serving import ResponsesServing
from server.apis.tokenization import DetokenizeRequest, TokenizationServing, TokenizeRequest
from server.generation.chat import ChatRunner, OutputParsing
from server.generation.generation import GenerationBuilder
from server.generation.generation_request import ChatRequest, CompletionRequest
from server.generation.reasoning import load_reasoning
from server.http.routes.endpoint import AppParts, Handler, JsonEndpoint, Route, T
from server.http.routes.info import InfoEndpoints
from server.http.routes.openapi import build_openapi
from server.http.transport.http_request import Request
from server.terms.http_body.response_body import ANTHROPIC, Answer, json_answer


def build_routes(parts: AppParts) -> list[Route]:
    """Builds all routes of a server."""
    describe = cache(lambda: json_answer(build_openapi(routes, parts.version)))

    async def openapi(_: Request) -> Answer:
        return describe()

    routes = [*_text_routes(parts), *_pooling_routes(parts), *_info_routes(parts), Route("/openapi.json", openapi)]
    return routes


def _post(parts: AppParts, path: str, model: type[T], handle: Handler[T], **options: Any) -> Route:
    """Builds a route that decodes JSON into `model` and passes the result to `handle`. See `JsonEndpoint`."""
    return Route(path, JsonEndpoint(parts, model, handle, **options), ("POST",))


def _text_routes(parts: AppParts) -> list[Route]:
    post = partial(_post, parts)
    config, renderer = parts.config.generation, parts.renderer
    reasoning = load_reasoning(config, renderer)
    builder = GenerationBuilder(parts, reasoning)
    runner = ChatRunner(parts, builder, OutputParsing(config, renderer, reasoning))
    chat, messages = partial(create_chat_completion, parts, runner), AnthropicServing(parts, runner)
    tokenization = TokenizationServing(parts.models, renderer, parts.engine)
    responses = ResponsesServing(parts, runner, parts.admission.limits)
    completions = CompletionServing(parts, builder)
    return [
        post("/v1/completions", CompletionRequest, completions.create, takes_embeds=True),
        post("/v1/chat/completions", ChatRequest, chat),
        post("/v1/messages", AnthropicRequest, messages.create, failures=ANTHROPIC),
        post("/v1/messages/count_tokens", CountTokensRequest, messages.count_tokens, failures=ANTHROPIC),
        post("/v1/responses", ResponsesRequest, responses.create),
        post("/tokenize", TokenizeRequest, tokenization.tokenize),
        post("/detokenize", DetokenizeRequest, tokenization.detokenize),
    ]


def _pooling_routes(parts: AppParts) -> list[Route]:
    post = partial(_post, parts)
    score, rerank = ScoreServing(parts).create, RerankServing(parts).create
    return [
        post("/v1/embeddings", EmbeddingRequest, EmbeddingServing(parts).create),
        post("/pooling", PoolingRequest, PoolingServing(parts).create),
        post("/classify", ClassificationRequest, ClassificationServing(parts).create),
        *(post(path, ScoreRequest, score) for path in ("/score", "/v1/score")),
        *(post(path, RerankRequest, rerank) for path in ("/rerank", "/v1/rerank", "/v2/rerank")),
    ]


def _info_routes(parts: AppParts) -> list[Route]:
    info = InfoEndpoints(parts)
    caches = [  # these concern all clients, so only a server for development has them
        Route("/reset_prefix_cache", info.reset_prefix_cache, ("POST",)),
        Route("/reset_mm_cache", info.reset_mm_cache, ("POST",)),
    ]
    return [
        *(caches if parts.config.server_dev_mode else ()),
        Route("/v1/models", info.list_models),
        Route("/v1/models/{model:path}", info.get_model),
        Route("/health", info.health),
        Route("/ping", info.health, ("GET", "HEAD", "POST")),
        Route("/readyz", info.health),
        Route("/livez", info.livez),
        Route("/startupz", info.startupz),
        Route("/version", info.version),
        Route("/load", info.load),
        Route("/metrics", info.metrics),
        *([Route("/", info.status_page)] if parts.config.network.web_page else ()),
        Route(DATA_PATH, info.status_data),
    ]
