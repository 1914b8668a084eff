"""The ASGI application of the API process: probes, pacing, middleware, and errors outside of routes."""

import asyncio
from collections import deque
from collections.abc import Iterable
from http import HTTPStatus
from time import perf_counter
from uuid import uuid4

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from base.errors import ServerError
from base.http_buckets import CLIENT_GONE
from base.request_paths import without_final_slash
from base.security.api_keys import OPEN_PATHS, READINESS_PATHS, STATUS_PATHS, ApiKeys, find_open_paths
from server.http.routes.endpoint import AppParts, read_header, read_request_id
from server.http.routes.info import HealthEndpoint, json_response
from server.http.routes.table import build_routes
from server.operation.admission import UnavailableError
from server.operation.metrics.server_metrics import HttpMetrics
from server.terms.http_body.response_body import (
    ErrorResponse,
    describe_failure,
    error_response,
    failure_format,
    send_json,
)

_REQUESTS_PER_TURN = 4
"""The most requests per turn of the loop. Beginning a request takes about 0.5 ms, and reading a piece of a
body (256 KB) about 0.25 ms."""
_UNKNOWN_PATH = "Not Found: the embedded engine has no such endpoint. `--engine vllm` has all of vLLM's."

UNCOUNTED_PATHS = OPEN_PATHS | STATUS_PATHS - {"/openapi.json"}
"""nginx's status for a request whose client disconnected before the response."""


class ServerApp(Starlette):
    """Answers probes before all other requests. All other requests pass through middleware and routes."""

    def __init__(self, parts: AppParts) -> None:
        parts.engine.subscribe_stats(lambda stats: parts.metrics.engine.record_step(stats))
        self._health = HealthEndpoint(parts.availability)
        self._is_probe_seen = parts.config.enable_request_id_headers
        """Whether probes also pass through the middleware."""
        self._root_path = parts.config.network.root_path.rstrip("/")
        """The path prefix of this server behind a proxy."""
        self._turns = LoopTurns()
        self._probe_paths = {prefix + path for prefix in ("", self._root_path) for path in READINESS_PATHS}
        routes = build_routes(parts)
        self._paths = {prefix + route.path for prefix in ("", self._root_path) for route in routes}
        super().__init__(
            routes=routes,
            middleware=_build_middleware(parts),
            exception_handlers={
                HTTPException: _answer_http_exception,
                ServerError: _answer_server_error,
                Exception: _answer_exception,
            },
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope = {**scope, "path": without_final_slash(scope["path"], self._paths)}  # uvicorn logs its own scope
        is_probe = scope["path"] in self._probe_paths and scope["method"] == "GET"
        if is_probe and not self._is_probe_seen and read_header(scope, b"origin") is None:
            await self._health(scope, receive, send)
            return
        if not is_probe:
            await self._turns.wait()
            receive = self._turns.pace(receive)
        if self._root_path:
            scope["root_path"] = self._root_path
        await super().__call__(scope, receive, send)


class LoopTurns:
    """Spreads the work of requests over the loop's iterations, so that a burst does not delay probes.

    A turn is one iteration of the loop. In each turn, `_REQUESTS_PER_TURN` requests may begin or read more
    of their body. Further requests wait for later turns, in the order of arrival. The loop polls sockets
    between turns, so a probe that arrives together with 300 requests is answered after four of them.
    """

    def __init__(self) -> None:
        self._num_begun = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def wait(self) -> None:
        """Waits until the request may begin, or may read more of its body."""
        if not self._num_begun and not self._waiting:
            asyncio.get_running_loop().call_soon(self._turn)
        if self._num_begun < _REQUESTS_PER_TURN and not self._waiting:
            self._num_begun += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        await place

    def pace(self, receive: Receive) -> Receive:
        """Returns a `receive` that waits for a turn before it reads more of a body."""
        has_more = False

        async def receive_in_turn() -> Message:
            nonlocal has_more
            if has_more:
                await self.wait()
            message = await receive()
            has_more = message.get("more_body", False)
            return message

        return receive_in_turn

    def _turn(self) -> None:
        self._num_begun = 0
        while self._waiting and self._num_begun < _REQUESTS_PER_TURN:
            place = self._waiting.popleft()
            if not place.cancelled():
                place.set_result(None)
                self._num_begun += 1
        if self._num_begun:
            asyncio.get_running_loop().call_soon(self._turn)


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = _UNKNOWN_PATH if error.status_code == HTTPStatus.NOT_FOUND else error.detail
    body = error_response(message, type=HTTPStatus(error.status_code).phrase, code=error.status_code)
    response = _failure(request, body)
    response.headers.update(error.headers or {})
    return response


async def _answer_server_error(request: Request, error: Exception) -> Response:
    """Answers errors of routes that are functions. A `JsonEndpoint` writes its errors itself."""
    if isinstance(error, UnavailableError):
        headers = {"retry-after": "1"} if error.body.may_retry else None
        return json_response(error.body, status=503, headers=headers)
    return _failure(request, describe_failure(error))


async def _answer_exception(request: Request, error: Exception) -> Response:
    return _failure(request, error_response("Internal server error", type="InternalServerError", code=500))


def _failure(request: Request, body: ErrorResponse) -> Response:
    return json_response(failure_format(route_path(request.scope)).to_body(body), status=body.error.code)


def _build_middleware(parts: AppParts) -> list[Middleware]:
    """Builds the middleware, outermost first."""
    network = parts.config.network
    middleware = [Middleware(HttpMetricsMiddleware, parts.metrics.http)]
    if parts.config.enable_request_id_headers:
        middleware.append(Middleware(RequestIdMiddleware))
    if network.allowed_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=network.allowed_origins,
            allow_methods=network.allowed_methods,
            allow_headers=network.allowed_headers,
            allow_credentials=network.allow_credentials,
        )
        middleware.append(cors)
    if parts.api_keys:
        middleware.append(Middleware(ApiKeyMiddleware, parts.api_keys, is_everywhere=network.api_key_everywhere))
    return middleware


class ApiKeyMiddleware:
    """Rejects requests that have none of the keys, except on paths that need no key."""

    def __init__(self, app: ASGIApp, api_keys: ApiKeys, *, is_everywhere: bool) -> None:
        """`is_everywhere`: whether all paths except probes need a key."""
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
    """Adds the request's X-Request-Id to the response. A request without a valid id gets a new one."""

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
    """Counts and times requests, by the route that matched the request."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if route_path(scope) in UNCOUNTED_PATHS:
            await self._app(scope, receive, send)
            return
        begin_s = perf_counter()
        status = CLIENT_GONE
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
            metrics, duration_s = self._metrics, perf_counter() - begin_s
            handler = "none" if (route := scope.get("route")) is None else route.path
            metrics.requests.labels(handler, f"{status // 100}xx", scope["method"]).inc()
            metrics.duration.labels(handler, scope["method"]).observe(duration_s)
            metrics.fine_duration.observe(duration_s)
            metrics.request_bytes.labels(handler).observe(_content_length(scope["headers"]))
            metrics.response_bytes.labels(handler).observe(response_bytes)


def _content_length(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Returns the Content-Length, or 0 if the header is missing or not a number."""
    value = dict(headers).get(b"content-length", b"")
    return int(value) if value.isdigit() else 0


def route_path(scope: Scope) -> str:
    """Returns the path without the prefix under which a proxy publishes the server."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
