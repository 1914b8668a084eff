"""The routes without a JSON body: probes, the server, its model, and kept responses by their id."""

import asyncio
from collections.abc import Mapping
from functools import cached_property

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from base.errors import RequestError
from server.apis.responses.serving import ResponsesServing
from server.http_body.response_parts import EVENTS_TYPE
from server.metrics.server_metrics import CONTENT_TYPE
from server.operation.availability import Availability
from server.routes.asgi import send_unavailable
from server.routes.openapi import build_openapi
from server.routes.parts import AppParts

_MAX_SHOWN = 100
_BOOLEANS = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)
_EVENTS = EVENTS_TYPE.decode()
_EMPTY: Message = {"type": "http.response.body", "body": b""}


class HealthEndpoint:
    """200 without a body if requests are accepted, else 503 with the reason; needs no lock and no I/O."""

    def __init__(self, availability: Availability) -> None:
        self._availability = availability

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._availability.problem
        if problem is not None:
            await send_unavailable(send, problem)
            return
        # middleware (CORS) adds its headers to the list
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send(_EMPTY)


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


class ResponseEndpoints:
    """Retrieves, follows and cancels kept responses; needs no engine."""

    def __init__(self, serving: ResponsesServing) -> None:
        self._serving = serving

    async def retrieve(self, request: Request) -> Response:
        """GET /v1/responses/{response_id}: the response; with `stream` its events after `starting_after`."""
        response_id = request.path_params["response_id"]
        if _read_boolean(request, "stream"):
            events = await self._serving.follow(response_id, _read_starting_after(request))
            return StreamingResponse(events, headers={"cache-control": "no-cache"}, media_type=_EVENTS)
        return Response(await self._serving.retrieve(response_id), media_type="application/json")

    async def cancel(self, request: Request) -> Response:
        """POST /v1/responses/{response_id}/cancel."""
        body = await self._serving.cancel(request.path_params["response_id"])
        return Response(body, media_type="application/json")


def json_response(body: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response with a JSON body."""
    return Response(msgspec.json.encode(body), status, headers, "application/json")


def _read_boolean(request: Request, name: str) -> bool:
    """A parameter of the query that is false unless it is given; raises RequestError."""
    given = request.query_params.get(name, "false")
    if (value := _BOOLEANS.get(given.lower())) is None:
        raise _invalid_parameter(name, "true or false", given)
    return value


def _read_starting_after(request: Request) -> int | None:
    given = request.query_params.get("starting_after")
    try:
        return None if given is None else int(given)
    except ValueError as err:
        raise _invalid_parameter("starting_after", "a whole number", str(given)) from err


def _invalid_parameter(name: str, expected: str, given: str) -> RequestError:
    """The rejection of a parameter of the query."""
    return RequestError(f"Invalid value for `{name}`: expected {expected}, got {given[:_MAX_SHOWN]!r}.", param=name)
