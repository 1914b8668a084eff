"""The routes about one response, by its id; they need no engine and answer in every state of the server."""

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from server import sse
from server.apis.responses.serving import ResponsesServing
from server.errors import RequestError
from server.http_body.errors import describe_failure
from server.routes.info import json_response

_EVENTS = sse.MEDIA_TYPE.decode()
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_MAX_SHOWN = 100


class ResponseEndpoints:
    """Retrieves, follows and cancels responses."""

    def __init__(self, serving: ResponsesServing) -> None:
        self._serving = serving

    async def retrieve(self, request: Request) -> Response:
        """GET /v1/responses/{response_id}: the response; with `stream` its events after `starting_after`."""
        response_id = request.path_params["response_id"]
        try:
            if _read_boolean(request, "stream"):
                events = await self._serving.follow(response_id, _read_number(request, "starting_after"))
                return StreamingResponse(events, headers={"cache-control": "no-cache"}, media_type=_EVENTS)
            return _json(await self._serving.retrieve(response_id))
        except RequestError as err:
            return _failure(err)

    async def cancel(self, request: Request) -> Response:
        """POST /v1/responses/{response_id}/cancel."""
        try:
            return _json(await self._serving.cancel(request.path_params["response_id"]))
        except RequestError as err:
            return _failure(err)


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _failure(error: RequestError) -> Response:
    return json_response(describe_failure(error), status=error.status)


def _read_boolean(request: Request, name: str) -> bool:
    given = request.query_params.get(name, "false")
    if given.lower() not in _BOOLEANS:
        raise _invalid(name, "true or false", given)
    return _BOOLEANS[given.lower()]


def _read_number(request: Request, name: str) -> int | None:
    given = request.query_params.get(name)
    if given is None:
        return None
    try:
        return int(given)
    except ValueError as err:
        raise _invalid(name, "a whole number", given) from err


def _invalid(name: str, expected: str, given: str) -> RequestError:
    return RequestError(f"Invalid value for `{name}`: expected {expected}, got {given[:_MAX_SHOWN]!r}.", param=name)
