"""Readiness probes, answered before any middleware unless a header of it may be needed."""

from starlette.types import Message, Receive, Scope, Send

from server.operation.availability import Availability
from server.routes.asgi import send_unavailable

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
        # middleware (CORS, that of users) adds its headers to the list
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send(_EMPTY)
