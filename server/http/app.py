"""The application of the API process: probes, pacing, CORS, keys, routes, metrics, and errors."""

import asyncio
from collections import deque
from http import HTTPStatus
from time import perf_counter

from base.http_requests import CLIENT_GONE, without_final_slash
from base.security.api_keys import OPEN_PATHS, READINESS_PATHS, STATUS_PATHS, find_open_paths
from server.http.routes.endpoint import AppParts, Route
from server.http.routes.info import health_answer
from server.http.routes.table import build_routes
from server.http.transport.added_headers import AddedHeaders
from server.http.transport.http_request import Request, find_header
from server.operation.admission import UnavailableError
from server.terms.http_body.response_body import (
    Answer,
    Headers,
    error_response,
    failure_answer,
    failure_format,
    json_answer,
    unavailable_answer,
)

_REQUESTS_PER_TURN = 4
"""The most requests per turn of the loop. Beginning a request takes about 0.5 ms, and reading a piece of a
body (256 KB) about 0.25 ms."""
_UNKNOWN_PATH = "Not Found: the embedded engine has no such endpoint. `--engine vllm` has all of vLLM's."
_MODELS = "/v1/models/"
_BEARER = ((b"www-authenticate", b"Bearer"),)

UNCOUNTED_PATHS = OPEN_PATHS | STATUS_PATHS - {"/openapi.json"}
"""Paths of requests that the HTTP metrics do not count."""


class ServerApp:
    """Answers probes before all other requests."""

    def __init__(self, parts: AppParts) -> None:
        parts.engine.subscribe_stats(lambda stats: parts.metrics.engine.record_step(stats))
        network = parts.config.network
        self._availability = parts.availability
        self._metrics = parts.metrics.http
        self._adds_request_ids = parts.config.enable_request_id_headers
        self._root_path = network.root_path.rstrip("/")
        """The path prefix of this server behind a proxy."""
        self._headers = AddedHeaders(network, adds_request_ids=self._adds_request_ids)
        self._api_keys = parts.api_keys
        self._open_paths = find_open_paths(is_key_everywhere=network.api_key_everywhere)
        self._routes = {route.path: route for route in build_routes(parts)}
        self._one_model = self._routes[f"{_MODELS}{{model:path}}"]
        self._turns = LoopTurns()

    async def __call__(self, request: Request) -> None:
        """Answers one request."""
        path = self._route_path(request.path)
        if path in READINESS_PATHS and request.method == "GET":
            if not self._adds_request_ids and find_header(request.headers, b"origin") is None:
                await request.send(health_answer(self._availability))
                return
        else:
            await self._turns.wait()
            request.wait_turn = self._turns.wait
        begin_s = perf_counter()
        route = self._routes.get(path)
        if route is None and path.startswith(_MODELS):
            route, request.path_argument = self._one_model, path.removeprefix(_MODELS)
        try:
            await self._answer(request, path, route)
        finally:
            if path not in UNCOUNTED_PATHS:
                self._count(request, "none" if route is None else route.path, perf_counter() - begin_s)

    def _route_path(self, path: str) -> str:
        """The path without final slashes, and without the prefix under which a proxy publishes the server."""
        root = self._root_path
        if root and path.startswith(f"{root}/"):
            path = path[len(root) :]
        return without_final_slash(path, self._routes)

    async def _answer(self, request: Request, path: str, route: Route | None) -> None:
        try:
            answer = self._answer_early(request, path, route)
            if answer is None and route is not None:
                answer = await route.handle(request)
        except UnavailableError as err:
            answer = unavailable_answer(err.body)
        except Exception as err:
            if request.status is not None:
                raise
            answer = failure_answer(err, failure_format(path))
        if answer is not None:
            await request.send(answer)

    def _answer_early(self, request: Request, path: str, route: Route | None) -> Answer | None:
        """The answer to a request that reaches no route. Adds headers to the response of any request."""
        if (preflight := self._headers.add_to(request)) is not None:
            return preflight
        if (refusal := self._refusal(request, path)) is not None:
            return _failure(401, refusal, path, headers=_BEARER)
        if route is None:
            if path == self._root_path and "/" in self._routes:  # the page's relative addresses need the slash
                return Answer(status=307, headers=((b"location", f"{path}/".encode()),))
            return _failure(404, _UNKNOWN_PATH, path)
        if request.method not in route.methods:
            allowed = ", ".join(route.methods).encode()
            return _failure(405, HTTPStatus(405).phrase, path, headers=((b"allow", allowed),))
        return None

    def _refusal(self, request: Request, path: str) -> str | None:
        """Why the request needs another API key, or None."""
        if not len(self._api_keys) or request.method == "OPTIONS" or path in self._open_paths:
            return None
        headers = request.headers

        def read(name: str) -> bytes:
            return (find_header(headers, name.encode()) or "").encode("latin-1")

        return self._api_keys.refusal(read)

    def _count(self, request: Request, handler: str, duration_s: float) -> None:
        status = CLIENT_GONE if request.status is None else request.status
        metrics, announced = self._metrics, find_header(request.headers, b"content-length") or ""
        metrics.requests.labels(handler, f"{status // 100}xx", request.method).inc()
        metrics.duration.labels(handler, request.method).observe(duration_s)
        metrics.fine_duration.observe(duration_s)
        metrics.request_bytes.labels(handler).observe(int(announced) if announced.isdigit() else 0)
        metrics.response_bytes.labels(handler).observe(request.num_announced)


class LoopTurns:
    """Spreads the work of requests over the loop's iterations, so that a burst does not delay probes.

    In each iteration, `_REQUESTS_PER_TURN` requests may begin or read more of their body, in the order of
    arrival. The loop polls sockets in between, so a probe that arrives with 300 requests waits for four.
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

    def _turn(self) -> None:
        self._num_begun = 0
        while self._waiting and self._num_begun < _REQUESTS_PER_TURN:
            place = self._waiting.popleft()
            if not place.cancelled():
                place.set_result(None)
                self._num_begun += 1
        if self._num_begun:
            asyncio.get_running_loop().call_soon(self._turn)


def _failure(status: int, message: str, path: str, *, headers: Headers = ()) -> Answer:
    body = error_response(message, type=HTTPStatus(status).phrase, code=status)
    return json_answer(failure_format(path).to_body(body), status=status, headers=headers)
