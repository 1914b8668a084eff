"""The GET routes about the server and its model."""

import asyncio
from collections.abc import Mapping
from functools import cached_property

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server.errors import RequestError
from server.metrics.server_metrics import CONTENT_TYPE
from server.routes.openapi import build_openapi
from server.routes.parts import AppParts

_MAX_SHOWN = 100
_BOOLEANS = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)


class InfoEndpoints:
    """Answer in every state of the lifecycle."""

    def __init__(self, parts: AppParts) -> None:
        self._parts = parts
        self._scraping = asyncio.Lock()

    async def version(self, request: Request) -> Response:
        """GET /version."""
        return json_response({"version": self._parts.version})

    async def load(self, request: Request) -> Response:
        """GET /load: the number of running requests."""
        return json_response({"server_load": self._parts.running.num_running})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics; rendering takes some milliseconds, so it runs off the event loop."""
        async with self._scraping:
            body = await asyncio.to_thread(self._parts.metrics.render)
        return Response(body, headers={"content-type": CONTENT_TYPE})

    async def livez(self, request: Request) -> Response:
        """GET /livez: 200 unless the server is dead."""
        return Response(status_code=503 if self._parts.lifecycle.state == "dead" else 200)

    async def startupz(self, request: Request) -> Response:
        """GET /startupz: the timeline of the start so far."""
        return Response(self._parts.start.report(), media_type="application/json")

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        return Response(self._openapi, media_type="application/json")

    @cached_property
    def _openapi(self) -> bytes:
        return msgspec.json.encode(build_openapi(self._parts.version))


class ModelEndpoints:
    """The model and its names, once the engine has loaded it."""

    def __init__(self, parts: AppParts) -> None:
        self._parts = parts

    async def list(self, request: Request) -> Response:
        """GET /v1/models."""
        self._parts.availability.check()
        return json_response(self._parts.models.list())

    async def get(self, request: Request) -> Response:
        """GET /v1/models/{model}."""
        self._parts.availability.check()
        return json_response(self._parts.models.get(request.path_params["model"]))


def json_response(body: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response with a JSON body."""
    return Response(msgspec.json.encode(body), status, headers, "application/json")


def read_boolean(request: Request, name: str) -> bool:
    """A parameter of the query that is false unless it is given; raises RequestError."""
    given = request.query_params.get(name, "false")
    if (value := _BOOLEANS.get(given.lower())) is None:
        raise invalid_parameter(name, "true or false", given)
    return value


def invalid_parameter(name: str, expected: str, given: str) -> RequestError:
    """The rejection of a parameter of the query."""
    return RequestError(f"Invalid value for `{name}`: expected {expected}, got {given[:_MAX_SHOWN]!r}.", param=name)
