"""The routes about one response, by its id; they need no engine and answer in every state of the server."""

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from server.apis.responses.serving import ResponsesServing
from server.http_body.response_parts import EVENTS_TYPE
from server.routes.info import invalid_parameter, read_boolean

_EVENTS = EVENTS_TYPE.decode()


class ResponseEndpoints:
    """Retrieves, follows and cancels responses."""

    def __init__(self, serving: ResponsesServing) -> None:
        self._serving = serving

    async def retrieve(self, request: Request) -> Response:
        """GET /v1/responses/{response_id}: the response; with `stream` its events after `starting_after`."""
        response_id = request.path_params["response_id"]
        if read_boolean(request, "stream"):
            events = await self._serving.follow(response_id, _read_starting_after(request))
            return StreamingResponse(events, headers={"cache-control": "no-cache"}, media_type=_EVENTS)
        return Response(await self._serving.retrieve(response_id), media_type="application/json")

    async def cancel(self, request: Request) -> Response:
        """POST /v1/responses/{response_id}/cancel."""
        body = await self._serving.cancel(request.path_params["response_id"])
        return Response(body, media_type="application/json")


def _read_starting_after(request: Request) -> int | None:
    given = request.query_params.get("starting_after")
    try:
        return None if given is None else int(given)
    except ValueError as err:
        raise invalid_parameter("starting_after", "a whole number", str(given)) from err
