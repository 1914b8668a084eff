"""The OpenAPI description, generated from the routes and the models of their requests."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from server.http.routes.endpoint import JsonEndpoint, Route
from server.terms.http_body.response_body import ErrorResponse, UnavailableResponse

Schemas = dict[type, dict[str, Any]]


def build_openapi(routes: Sequence[Route], version: str) -> dict[str, Any]:
    """Builds the whole document. As in vLLM's document, the only responses with a schema are errors."""
    requests = [route.handle.model for route in routes if isinstance(route.handle, JsonEndpoint)]
    models: list[type] = [ErrorResponse, UnavailableResponse, *requests]
    found, components = msgspec.json.schema_components(models, ref_template="#/components/schemas/{name}")
    schemas = dict(zip(models, found, strict=True))
    return {
        "openapi": "3.1.0",
        "info": {"title": "vllm-cli", "version": version},
        "paths": {route.path.replace(":path}", "}"): _operations(schemas, route) for route in routes},
        "components": {"schemas": components},
    }


def _operations(schemas: Schemas, route: Route) -> dict[str, Any]:
    if isinstance(route.handle, JsonEndpoint):
        return {"post": _post(schemas, route.handle.model)}
    return {method.lower(): _without_body(schemas, route) for method in route.methods if method != "HEAD"}


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


def _without_body(schemas: Schemas, route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {"responses": {"200": {"description": "The response"}}}
    if name := route.path.partition("{")[2].partition(":")[0]:
        parameter = {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        operation["parameters"] = [parameter]
        operation["responses"]["400"] = _failure(schemas, "The request is invalid")
        operation["responses"]["404"] = _failure(schemas, "There is nothing of that name")
    return operation
