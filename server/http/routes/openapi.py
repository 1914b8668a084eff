"""The OpenAPI description, generated from the request models."""

import re
from functools import partial
from typing import Any

import msgspec

from server.apis.anthropic.request import AnthropicRequest, CountTokensRequest
from server.apis.pooling.endpoints import ClassificationRequest, EmbeddingRequest, PoolingRequest
from server.apis.pooling.scoring import RerankRequest, ScoreRequest
from server.apis.responses.request import ResponsesRequest
from server.apis.tokenization import DetokenizeRequest, TokenizeRequest
from server.generation.completion_request import CompletionRequest
from server.generation.request import ChatRequest
from server.terms.http_body.response_body import ErrorResponse, UnavailableResponse

Schemas = dict[type, dict[str, Any]]

_POSTS: dict[str, type] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/messages": AnthropicRequest,
    "/v1/messages/count_tokens": CountTokensRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/pooling": PoolingRequest,
    "/classify": ClassificationRequest,
    "/score": ScoreRequest,
    "/v1/score": ScoreRequest,
    "/rerank": RerankRequest,
    "/v1/rerank": RerankRequest,
    "/v2/rerank": RerankRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
"""Path -> model of the request."""

_PATH_PARAMETER = re.compile(r"{(\w+)}")

_GETS = (
    "/v1/models",
    "/v1/models/{model}",
    "/v1/responses/{response_id}",
    "/v1/responses/{response_id}/input_items",
    "/health",
    "/ping",
    "/version",
    "/load",
    "/metrics",
)

_QUERIES = {
    "/v1/responses/{response_id}": {"stream": "boolean", "starting_after": "integer"},
    "/v1/responses/{response_id}/input_items": {"after": "string", "limit": "integer", "order": "string"},
}
"""Path -> type of each query parameter of its GET."""

_ACTIONS = {"/v1/responses/{response_id}/cancel": "post", "/v1/responses/{response_id}": "delete"}
"""Path -> method; without a body."""


def build_openapi(version: str) -> dict[str, Any]:
    """The whole document; responses other than errors have no schema, as in vLLM's."""
    models = [ErrorResponse, UnavailableResponse, *_POSTS.values()]
    found, components = msgspec.json.schema_components(models, ref_template="#/components/schemas/{name}")
    schemas = dict(zip(models, found, strict=True))
    paths = {path: {"post": _post(schemas, model)} for path, model in _POSTS.items()}
    paths |= {path: {"get": _without_body(schemas, path, _QUERIES.get(path, {}))} for path in _GETS}
    for path, method in _ACTIONS.items():
        paths.setdefault(path, {})[method] = _without_body(schemas, path, {})
    return {
        "openapi": "3.1.0",
        "info": {"title": "vllm-cli", "version": version},
        "paths": paths,
        "components": {"schemas": components},
    }


def _post(schemas: Schemas, request: type) -> dict[str, Any]:
    failure = partial(_failure, schemas)
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schemas[request]}}},
        "responses": {
            "200": {"description": "The response"},
            "400": failure("The request is invalid"),
            "404": failure("The model is not served here, or does not support this endpoint"),
            "413": failure("The body is too large"),
            "415": failure("The body is compressed"),
            "503": failure("No requests are accepted at the moment", UnavailableResponse),
        },
    }


def _failure(schemas: Schemas, description: str, model: type = ErrorResponse) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schemas[model]}}}


def _without_body(schemas: Schemas, path: str, queries: dict[str, str]) -> dict[str, Any]:
    operation: dict[str, Any] = {"responses": {"200": {"description": "The response"}}}
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PATH_PARAMETER.findall(path)
    ]
    if parameters:
        operation["responses"]["400"] = _failure(schemas, "The request is invalid")
        operation["responses"]["404"] = _failure(schemas, "There is nothing of that name")
    parameters += [{"name": name, "in": "query", "schema": {"type": kind}} for name, kind in queries.items()]
    return operation | ({"parameters": parameters} if parameters else {})
