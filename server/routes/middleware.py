"""The middleware: API keys, request ids, HTTP metrics, CORS.

GET probes bypass it, unless --enable-request-id-headers is given.
"""

from collections.abc import Iterable
from time import perf_counter
from uuid import uuid4

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from base.security.api_keys import ApiKeys
from base.security.open_paths import OPEN_PATHS, STATUS_PATHS, find_open_paths
from server.apis.messages.errors import failure_format
from server.http_body.errors import error_response
from server.metrics.server_metrics import HttpMetrics
from server.routes.asgi import read_header, read_request_id, send_json
from server.server_config import ServerConfig

UNCOUNTED_PATHS = OPEN_PATHS | STATUS_PATHS - {"/openapi.json"}

_CLIENT_GONE = 499
"""nginx's status for a request whose client disconnected before the response."""


def build_middleware(config: ServerConfig, api_keys: ApiKeys, metrics: HttpMetrics) -> list[Middleware]:
    """The middleware, outermost first."""
    middleware = [Middleware(HttpMetricsMiddleware, metrics)]
    if config.enable_request_id_headers:
        middleware.append(Middleware(RequestIdMiddleware))
    if config.network.allowed_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=config.network.allowed_origins,
                allow_methods=config.network.allowed_methods,
                allow_headers=config.network.allowed_headers,
                allow_credentials=config.network.allow_credentials,
            )
        )
    if api_keys:
        middleware.append(Middleware(ApiKeyMiddleware, api_keys, is_everywhere=config.network.api_key_everywhere))
    return middleware


class ApiKeyMiddleware:
    """Rejects requests without one of the keys, except for the open paths."""

    def __init__(self, app: ASGIApp, api_keys: ApiKeys, *, is_everywhere: bool) -> None:
        """With `is_everywhere`, only probes are open."""
        self._app = app
        self._api_keys = api_keys
        self._open_paths = find_open_paths(is_key_everywhere=is_everywhere)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = route_path(scope)
        is_open = scope["method"] == "OPTIONS" or path in self._open_paths
        refusal = None if is_open else self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        body = error_response(refusal, type="Unauthorized", code=401)
        headers = ((b"www-authenticate", b"Bearer"),)
        await send_json(send, failure_format(path).to_body(body), status=401, headers=headers)

    def _refusal(self, scope: Scope) -> str | None:
        return self._api_keys.refusal(lambda name: (read_header(scope, name.encode()) or "").encode("latin-1"))


class RequestIdMiddleware:
    """Adds X-Request-Id to responses: the client's valid one, or a new one, then set in the request too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = read_request_id(scope)
        if request_id is None:
            request_id = uuid4().hex
            others = (header for header in scope["headers"] if header[0] != b"x-request-id")
            scope["headers"] = [*others, (b"x-request-id", request_id.encode())]
        header = (b"x-request-id", request_id.encode("latin-1"))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], header]}
            await send(message)

        await self._app(scope, receive, send_with_id)


class HttpMetricsMiddleware:
    """Counts and times requests by the route they matched."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if route_path(scope) in UNCOUNTED_PATHS:
            await self._app(scope, receive, send)
            return
        begin_s = perf_counter()
        status = _CLIENT_GONE
        response_bytes = 0

        async def send_and_record(message: Message) -> None:
            nonlocal status, response_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
                response_bytes = _content_length(message["headers"])
            await send(message)

        try:
            await self._app(scope, receive, send_and_record)
        except Exception:
            status = 500
            raise
        finally:
            route = scope.get("route")
            self._metrics.record(
                handler="none" if route is None else route.path,
                method=scope["method"],
                status=status,
                duration_s=perf_counter() - begin_s,
                request_bytes=_content_length(scope["headers"]),
                response_bytes=response_bytes,
            )


def _content_length(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """The announced content length; 0 if it is missing or not a number."""
    for name, value in headers:
        if name.lower() == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0


def route_path(scope: Scope) -> str:
    """The path without the prefix under which a proxy publishes the server."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
