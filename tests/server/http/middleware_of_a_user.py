"""Middleware as operators write it, in both forms."""

from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Named:
    """An ASGI class."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"x-order", b"class")]}
            await send(message)

        await self._app(scope, receive, send_named)


async def named(request: Any, call_next: Any) -> Any:
    """A coroutine function."""
    response = await call_next(request)
    response.headers.append("x-order", "function")
    return response


async def refuses(request: Any, call_next: Any) -> Any:
    """Fails."""
    raise RuntimeError("refused")


NEITHER = 3
