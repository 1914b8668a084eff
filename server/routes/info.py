"""The GET routes about the server and its model."""

import asyncio
from functools import cached_property

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.errors import RequestError
from server.http_body.errors import UnavailableResponse, describe_failure
from server.lifecycle import Lifecycle
from server.metrics.server_metrics import ServerMetrics
from server.operation.availability import Availability, StartView
from server.operation.models import ServedModels
from server.operation.running_requests import RunningRequests
from server.renderers.base import BaseRenderer
from server.routes.openapi import build_openapi


class InfoEndpoints:
    """Answer in every state of the lifecycle."""

    def __init__(
        self, lifecycle: Lifecycle, start: StartView, running: RunningRequests, metrics: ServerMetrics, *, version: str
    ) -> None:
        self._lifecycle = lifecycle
        self._start = start
        self._running = running
        self._metrics = metrics
        self._version = version
        self._scraping = asyncio.Lock()

    async def version(self, request: Request) -> Response:
        """GET /version."""
        return json_response({"version": self._version})

    async def load(self, request: Request) -> Response:
        """GET /load: the number of running requests."""
        return json_response({"server_load": self._running.num_running})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics; rendering takes some milliseconds, so it runs off the event loop."""
        accept = request.headers.get("accept")
        async with self._scraping:
            exposition = await asyncio.to_thread(self._metrics.render, accept)
        return Response(exposition.body, headers={"content-type": exposition.content_type})

    async def livez(self, request: Request) -> Response:
        """GET /livez: 200 unless the server is dead."""
        return Response(status_code=503 if self._lifecycle.state == "dead" else 200)

    async def startupz(self, request: Request) -> Response:
        """GET /startupz: the timeline of the start so far."""
        return Response(self._start.report(), media_type="application/json")

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        return Response(self._openapi, media_type="application/json")

    @cached_property
    def _openapi(self) -> bytes:
        return msgspec.json.encode(build_openapi(self._version))


class ModelEndpoints:
    """Answer once the engine has loaded the model."""

    def __init__(self, availability: Availability, models: ServedModels) -> None:
        self._availability = availability
        self._models = models

    async def list(self, request: Request) -> Response:
        """GET /v1/models."""
        problem = self._availability.problem
        return json_response(self._models.list()) if problem is None else unavailable_response(problem)

    async def get(self, request: Request) -> Response:
        """GET /v1/models/{model}."""
        problem = self._availability.problem
        if problem is not None:
            return unavailable_response(problem)
        try:
            return json_response(self._models.get(request.path_params["model"]))
        except RequestError as err:
            return json_response(describe_failure(err), status=err.status)


class TokenizerEndpoint:
    """GET /tokenizer_info, with `--enable-tokenizer-info-endpoint`."""

    def __init__(self, renderer: BaseRenderer) -> None:
        self._renderer = renderer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        info = self._renderer.tokenizer.describe()
        if self._renderer.config.chat_template is not None:
            info["chat_template"] = self._renderer.config.chat_template
        await json_response(info)(scope, receive, send)


def json_response(body: object, *, status: int = 200) -> Response:
    """A response with a JSON body."""
    return Response(msgspec.json.encode(body), status, media_type="application/json")


def unavailable_response(body: UnavailableResponse) -> Response:
    """The 503 of a server that accepts no requests."""
    return Response(
        msgspec.json.encode(body),
        503,
        {} if body.status == "dead" else {"retry-after": "1"},
        "application/json",
    )
