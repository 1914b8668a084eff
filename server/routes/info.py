"""The GET routes: what is served, and how the server is doing."""

import asyncio
from functools import cached_property

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server.errors import RequestError
from server.protocol.errors import UnavailableResponse
from server.routes.aside import run_aside
from server.routes.openapi import build_openapi
from server.serving.failures import describe_failure
from server.serving.models import ServedModels
from server.serving.services import Services


class InfoEndpoints:
    """Answer at any time, also while the engine starts."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._scraping = asyncio.Lock()

    async def version(self, request: Request) -> Response:
        """GET /version."""
        return json_response({"version": self._services.version})

    async def load(self, request: Request) -> Response:
        """GET /load: requests that are being answered."""
        return json_response({"server_load": self._services.gate.num_running})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics; writing it takes some milliseconds, which the event loop does not wait for."""
        accept = request.headers.get("accept")
        async with self._scraping:
            exposition = await run_aside(lambda: self._services.metrics.render(accept))
        return Response(exposition.body, headers={"content-type": exposition.content_type})

    async def livez(self, request: Request) -> Response:
        """GET /livez: 200 as long as this process does its work; only a server without an engine does not."""
        return Response(status_code=503 if self._services.status == "dead" else 200)

    async def startupz(self, request: Request) -> Response:
        """GET /startupz: the timeline of the start, so far or whole."""
        return Response(self._services.start.report(), media_type="application/json")

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        return Response(self._openapi, media_type="application/json")

    @cached_property
    def _openapi(self) -> bytes:
        return msgspec.json.encode(build_openapi(self._services.version))


class ModelEndpoints:
    """Answer once the engine has told the model's limits."""

    def __init__(self, services: Services, served: ServedModels) -> None:
        self._services = services
        self._served = served

    async def list(self, request: Request) -> Response:
        """GET /v1/models."""
        unavailable = self._services.unavailable
        return json_response(self._served.list()) if unavailable is None else unavailable_response(unavailable)

    async def get(self, request: Request) -> Response:
        """GET /v1/models/{model}."""
        unavailable = self._services.unavailable
        if unavailable is not None:
            return unavailable_response(unavailable)
        try:
            return json_response(self._served.get(request.path_params["model"]))
        except RequestError as err:
            return json_response(describe_failure(err), status=err.status)


def json_response(body: object, *, status: int = 200) -> Response:
    """A whole answer."""
    return Response(msgspec.json.encode(body), status, media_type="application/json")


def unavailable_response(body: UnavailableResponse) -> Response:
    """The 503 of a server that takes no requests."""
    return Response(
        msgspec.json.encode(body),
        503,
        {} if body.status == "dead" else {"retry-after": "1"},
        "application/json",
    )
