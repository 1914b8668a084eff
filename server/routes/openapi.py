"""The OpenAPI description, generated from the request and response models."""

from typing import Any

import msgspec

from server.protocol.chat import ChatRequest
from server.protocol.chat_response import ChatChunk, ChatResponse
from server.protocol.classification import ClassificationRequest, ClassificationResponse
from server.protocol.completions import CompletionChunk, CompletionRequest, CompletionResponse
from server.protocol.embeddings import EmbeddingRequest, EmbeddingResponse
from server.protocol.errors import ErrorResponse, UnavailableResponse
from server.protocol.models import ModelCard, ModelList
from server.protocol.pooling import PoolingRequest, PoolingResponse
from server.protocol.scoring import RerankRequest, RerankResponse, ScoreRequest, ScoreResponse
from server.protocol.tokenize import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse

_POSTS: dict[str, tuple[type, type, type | None]] = {
    "/v1/completions": (CompletionRequest, CompletionResponse, CompletionChunk),
    "/v1/chat/completions": (ChatRequest, ChatResponse, ChatChunk),
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

_GETS: dict[str, type | None] = {
    "/v1/models": ModelList,
    "/v1/models/{model}": ModelCard,
    "/health": None,
    "/ping": None,
    "/version": None,
    "/load": None,
    "/metrics": None,
}


def build_openapi(version: str) -> dict[str, Any]:
    """The whole document."""
    models: list[type] = [ErrorResponse, UnavailableResponse]
    for request, answer, event in _POSTS.values():
        models += [model for model in (request, answer, event) if model is not None]
    models += [model for model in _GETS.values() if model is not None]
    _, components = msgspec.json.schema_components(models, ref_template="#/components/schemas/{name}")
    return {
        "openapi": "3.1.0",
        "info": {"title": "vllm-cli", "version": version},
        "paths": {path: {"post": _post(*models)} for path, models in _POSTS.items()}
        | {path: {"get": _get(path, answer)} for path, answer in _GETS.items()},
        "components": {"schemas": components},
    }


def _post(request: type, answer: type, event: type | None) -> dict[str, Any]:
    content = {"application/json": {"schema": _reference(answer)}}
    if event is not None:
        content["text/event-stream"] = {"schema": _reference(event)}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": _reference(request)}}},
        "responses": {
            "200": {"description": "The response", "content": content},
            "400": _failure("The request is invalid", ErrorResponse),
            "404": _failure("The model is not served here, or does not support this endpoint", ErrorResponse),
            "413": _failure("The body is too large", ErrorResponse),
            "415": _failure("The body is compressed", ErrorResponse),
            "504": _failure("The response took too long", ErrorResponse),
            "503": _failure("No requests are accepted at the moment", UnavailableResponse),
        },
    }


def _get(path: str, answer: type | None) -> dict[str, Any]:
    found: dict[str, Any] = {"description": "The response"}
    if answer is not None:
        found["content"] = {"application/json": {"schema": _reference(answer)}}
    operation: dict[str, Any] = {"responses": {"200": found}}
    if "{model}" in path:
        operation["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    return operation


def _failure(description: str, model: type) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _reference(model)}}}


def _reference(model: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
