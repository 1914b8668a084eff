"""The ASGI application of the API process."""

from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from server.apis.messages.response import failure_format
from server.http_body.errors import error_response
from server.routes.health import READINESS_PATHS, HealthEndpoint
from server.routes.info import json_response
from server.routes.middleware import route_path
from server.routes.turns import LoopTurns


class ServerApp(Starlette):
    """Answers probes before all other requests, which go through middleware and routes."""

    def __init__(
        self,
        health: HealthEndpoint,
        routes: list[Route],
        middleware: list[Middleware],
        *,
        root_path: str,
        is_probe_seen: bool = False,
    ) -> None:
        """Wires the routes.

        Args:
            health: answers probes.
            routes: all other routes.
            middleware: outermost first.
            root_path: the prefix under which a proxy publishes the server; empty without one.
            is_probe_seen: whether probes go through the middleware, too.
        """
        self._health = health
        self.is_probe_seen = is_probe_seen
        self._root_path = root_path.rstrip("/")
        self._turns = LoopTurns()
        self._probe_paths = {prefix + path for prefix in ("", self._root_path) for path in READINESS_PATHS}
        super().__init__(
            routes=routes,
            middleware=middleware,
            exception_handlers={HTTPException: _answer_http_exception, Exception: _answer_exception},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            is_probe = scope["path"] in self._probe_paths and scope["method"] == "GET"
            if is_probe and not self.is_probe_seen and not _is_cross_origin(scope):
                await self._health(scope, receive, send)
                return
            if not is_probe:
                await self._turns.wait()
                receive = self._turns.pace(receive)
            if self._root_path:
                scope["root_path"] = self._root_path
        await super().__call__(scope, receive, send)


def _is_cross_origin(scope: Scope) -> bool:
    return any(name == b"origin" for name, _ in scope["headers"])


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    body = error_response(error.detail, type=HTTPStatus(status).phrase, code=status)
    response = json_response(failure_format(route_path(request.scope)).to_body(body), status=status)
    response.headers.update(error.headers or {})
    return response


async def _answer_exception(request: Request, error: Exception) -> Response:
    body = error_response("Internal server error", type="InternalServerError", code=500)
    return json_response(failure_format(route_path(request.scope)).to_body(body), status=500)
