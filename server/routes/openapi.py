"""The OpenAPI description, generated from the request and response models."""

import re
from functools import partial
from typing import Any

import msgspec

from server.apis.messages.request import CountTokensRequest, MessagesRequest
from server.apis.messages.response import CountTokensResponse, MessagesResponse, StreamEvent
from server.apis.openai.bodies import ChatChunk, ChatResponse, CompletionChunk, CompletionResponse
from server.apis.pooling.embedding import EmbeddingRequest, EmbeddingResponse
from server.apis.pooling.pooling import ClassificationRequest, ClassificationResponse, PoolingRequest, PoolingResponse
from server.apis.pooling.scoring import RerankRequest, RerankResponse, ScoreRequest, ScoreResponse
from server.apis.responses.events import ResponseStreamEvent
from server.apis.responses.request import ResponsesRequest
from server.apis.responses.response import Response
from server.apis.tokenization import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse
from server.generation.chat_request import ChatRequest
from server.generation.completion_request import CompletionRequest
from server.http_body.errors import ErrorResponse, UnavailableResponse
from server.operation.models import ModelCard, ModelList

Model = Any
"""A struct, or a union of structs."""
Schemas = dict[Model, dict[str, Any]]

_POSTS: dict[str, tuple[Model, Model, Model | None]] = {
    "/v1/completions": (CompletionRequest, CompletionResponse, CompletionChunk),
    "/v1/chat/completions": (ChatRequest, ChatResponse, ChatChunk),
    "/v1/responses": (ResponsesRequest, Response, ResponseStreamEvent),
    "/v1/messages": (MessagesRequest, MessagesResponse, StreamEvent),
    "/v1/messages/count_tokens": (CountTokensRequest, CountTokensResponse, None),
    "/v1/embeddings": (EmbeddingRequest, EmbeddingResponse, None),
    "/pooling": (PoolingRequest, PoolingResponse, None),
    "/classify": (ClassificationRequest, ClassificationResponse, None),
    "/score": (ScoreRequest, ScoreResponse, None),
    "/v1/score": (ScoreRequest, ScoreResponse, None),
    "/rerank": (RerankRequest, RerankResponse, None),
    "/v1/rerank": (RerankRequest, RerankResponse, None),
    "/v2/rerank": (RerankRequest, RerankResponse, None),
    "/tokenize": (TokenizeRequest, TokenizeResponse, None),
    "/detokenize": (DetokenizeRequest, DetokenizeResponse, None),
}
"""Path -> models of request, response and stream event."""

_PATH_PARAMETER = re.compile(r"{(\w+)}")

_GETS: dict[str, Model | None] = {
    "/v1/models": ModelList,
    "/v1/models/{model}": ModelCard,
    "/v1/responses/{response_id}": Response,
    "/health": None,
    "/ping": None,
    "/version": None,
    "/load": None,
    "/metrics": None,
}


_QUERIES = {"/v1/responses/{response_id}": {"stream": "boolean", "starting_after": "integer"}}
"""Path -> type of each query parameter."""

_ACTIONS: dict[str, type] = {"/v1/responses/{response_id}/cancel": Response}
"""Path of a POST without a body -> model of the response."""


def build_openapi(version: str) -> dict[str, Any]:
    """The whole document."""
    used = [ErrorResponse, UnavailableResponse, *_GETS.values(), *_ACTIONS.values()]
    used += (model for post in _POSTS.values() for model in post)
    models = [model for model in used if model is not None]
    found, components = msgspec.json.schema_components(models, ref_template="#/components/schemas/{name}")
    schemas = dict(zip(models, found, strict=True))
    return {
        "openapi": "3.1.0",
        "info": {"title": "vllm-cli", "version": version},
        "paths": {path: {"post": _post(schemas, *models)} for path, models in _POSTS.items()}
        | {path: {"get": _without_body(schemas, path, answer)} for path, answer in _GETS.items()}
        | {path: {"post": _without_body(schemas, path, answer)} for path, answer in _ACTIONS.items()},
        "components": {"schemas": components},
    }


def _post(schemas: Schemas, request: Model, answer: Model, event: Model | None) -> dict[str, Any]:
    content = {"application/json": {"schema": schemas[answer]}}
    if event is not None:
        content["text/event-stream"] = {"schema": schemas[event]}
    failure = partial(_failure, schemas)

    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schemas[request]}}},
        "responses": {
            "200": {"description": "The response", "content": content},
            "400": failure("The request is invalid"),
            "404": failure("The model is not served here, or does not support this endpoint"),
            "413": failure("The body is too large"),
            "415": failure("The body is compressed"),
            "504": failure("The response took too long"),
            "503": failure("No requests are accepted at the moment", UnavailableResponse),
        },
    }


def _failure(schemas: Schemas, description: str, model: Model = ErrorResponse) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schemas[model]}}}


def _without_body(schemas: Schemas, path: str, answer: Model | None) -> dict[str, Any]:
    found: dict[str, Any] = {"description": "The response"}
    if answer is not None:
        found["content"] = {"application/json": {"schema": schemas[answer]}}
    operation: dict[str, Any] = {"responses": {"200": found}}
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PATH_PARAMETER.findall(path)
    ]
    if parameters:
        operation["responses"]["400"] = _failure(schemas, "The request is invalid")
        operation["responses"]["404"] = _failure(schemas, "There is nothing of that name")
    parameters += [
        {"name": name, "in": "query", "schema": {"type": kind}} for name, kind in _QUERIES.get(path, {}).items()
    ]
    return operation | ({"parameters": parameters} if parameters else {})
