"""SageMaker's customizations of /ping, /invocations, /adapters and the middleware, by AWS's own package.

`model-hosting-container-standards` resolves the customer's handlers, middleware and sessions. Its routes are
those of a FastAPI application inside ours; the server's own handlers are passed to it as functions. Imported
only in containers that customize something, because the imports take half a second.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import model_hosting_container_standards.sagemaker as standards
from fastapi import FastAPI
from model_hosting_container_standards.common.fastapi.middleware.core import load_middlewares
from model_hosting_container_standards.sagemaker.handler_resolver import register_sagemaker_overrides
from model_hosting_container_standards.sagemaker.sagemaker_loader import SageMakerFunctionLoader
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def customize(app: Starlette, *, max_body_bytes: int) -> None:
    """Registers the app's handlers and puts the customer's routes and middleware in front of them.

    Larger bodies than `max_body_bytes` are rejected before the package reads them.
    """
    own: dict[str, ASGIApp] = {route.path: route.app for route in app.router.routes if isinstance(route, Route)}
    invocations = _register_handlers(own)
    load_middlewares(app, SageMakerFunctionLoader.get_function_loader())
    register_sagemaker_overrides()
    router = standards.create_sagemaker_router()
    inner = FastAPI(openapi_url=None)
    inner.include_router(router)
    routes = [Route(route.path, inner, methods=list(route.methods)) for route in router.routes]
    routes.append(Route("/invocations", invocations, methods=["POST"]))
    for route in routes:
        route.app = _BoundedBody(route.app, max_body_bytes)
    app.router.routes[:0] = routes


class _BoundedBody:
    """Rejects larger bodies with 413: the package reads the whole body."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        num_bytes = 0

        async def receive_bounded() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise HTTPException(413, f"The request body is larger than {self._max_bytes} bytes.")
            return message

        await self._app(scope, receive_bounded, send)


class _Delegated(Response):
    """A response that another ASGI app gives to the request, with this body."""

    def __init__(self, app: ASGIApp, body: bytes) -> None:
        super().__init__()
        self._app = app
        self._request_body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_sent = False

        async def replay() -> Message:
            nonlocal is_sent
            if is_sent:
                return await receive()
            is_sent = True
            return {"type": "http.request", "body": self._request_body}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self._added_headers()]}
            await send(message)

        headers = [header for header in scope["headers"] if header[0] != b"content-length"]
        headers.append((b"content-length", str(len(self._request_body)).encode()))
        if all(name != b"content-type" for name, _ in headers):  # such as DELETE /adapters/NAME
            headers.append((b"content-type", b"application/json"))
        await self._app({**scope, "headers": headers}, replay, send_with_headers)

    def _added_headers(self) -> list[tuple[bytes, bytes]]:
        """Headers that the package has set on this response."""
        return [header for header in self.raw_headers if header[0] != b"content-length"]


async def _complete(response: Response, request: Request) -> Response:
    """Gives the response now: the package looks at its status, and answers itself if that is 200."""
    start: Message = {}
    parts: list[bytes] = []

    async def collect(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
        else:
            parts.append(message.get("body", b""))

    await response(request.scope, request.receive, collect)
    complete = Response(status_code=start["status"])
    complete.body, complete.raw_headers = b"".join(parts), list(start["headers"])
    return complete


def _register_handlers(own: Mapping[str, ASGIApp]) -> Callable[[Request], Awaitable[Response]]:
    """Registers the server's handlers; returns that of /invocations with sessions and adapters."""

    async def ping(request: Request) -> Response:
        return _Delegated(own["/ping"], b"")

    async def invocations(request: Request) -> Response:
        return _Delegated(own["/invocations"], await request.body())

    async def load_adapter(adapter: Any, request: Request) -> Response:
        return await _complete(_Delegated(own["/v1/load_lora_adapter"], json.dumps(vars(adapter)).encode()), request)

    async def unload_adapter(adapter: Any, request: Request) -> Response:
        return await _complete(_Delegated(own["/v1/unload_lora_adapter"], json.dumps(vars(adapter)).encode()), request)

    standards.register_ping_handler(ping)
    with_adapter = standards.inject_adapter_id(adapter_path="model")(invocations)
    with_session: Callable[[Request], Awaitable[Response]] = standards.stateful_session_manager()(with_adapter)
    standards.register_invocation_handler(with_session)
    if "/v1/load_lora_adapter" in own:
        load_shape = {"lora_name": "body.name", "lora_path": "body.src"}
        standards.register_load_adapter_handler(request_shape=load_shape)(load_adapter)
        unload_shape = {"lora_name": "path_params.adapter_name"}
        standards.register_unload_adapter_handler(request_shape=unload_shape)(unload_adapter)
    return with_session
