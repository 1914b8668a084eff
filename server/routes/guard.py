"""Middleware around all routes but the probes' short cut: keys, request ids and HTTP metrics."""

import hashlib
import hmac
from time import perf_counter
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.metrics import HttpMetrics
from server.protocol.errors import error_response
from server.routes.messages import read_header, send_json

OPEN_PATHS = frozenset({"/health", "/ping", "/version", "/livez", "/readyz", "/startupz"})
UNCOUNTED_PATHS = OPEN_PATHS | {"/metrics", "/load"}

_CLIENT_GONE = 499
"""What nginx notes for a request whose client did not wait for the answer."""


class ApiKeyMiddleware:
    """Lets requests pass that carry one of the keys; digests are compared, so that time tells nothing."""

    def __init__(self, app: ASGIApp, api_keys: tuple[str, ...]) -> None:
        self._app = app
        self._digests = [_digest(key.encode("utf-8", "surrogateescape")) for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["type"] != "http" or scope["method"] == "OPTIONS" or _route_path(scope) in OPEN_PATHS
        if is_open or self._is_known(read_header(scope, b"authorization") or ""):
            await self._app(scope, receive, send)
            return
        body = error_response(
            "Give one of the server's API keys as 'Authorization: Bearer KEY'.", type="Unauthorized", code=401
        )
        await send_json(send, body, status=401, headers=((b"www-authenticate", b"Bearer"),))

    def _is_known(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        digest = _digest(key.encode("latin-1"))
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == "bearer" and any(matches)


class RequestIdMiddleware:
    """Answers carry X-Request-Id: the client's, or a new one, which the routes then see as the client's."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = read_header(scope, b"x-request-id")
        if request_id is None:
            request_id = uuid4().hex
            scope["headers"] = [*scope["headers"], (b"x-request-id", request_id.encode())]
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
        if scope["type"] != "http" or _route_path(scope) in UNCOUNTED_PATHS:
            await self._app(scope, receive, send)
            return
        begin_s = perf_counter()
        status = _CLIENT_GONE

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
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
            )


def _route_path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
