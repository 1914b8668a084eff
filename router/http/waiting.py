"""Sends comments to the client of a stream while the model starts.

Client libraries ignore comments, but some take the blank line after a comment for an empty event.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

from aiohttp import web


class Patience(NamedTuple):
    """Times in seconds. Tests shorten them."""

    comment_s: float = 1.0
    """The interval of comments while a model starts."""
    stall_s: float = 30.0
    """If others wait, a client that does not read, or a silent WebSocket, is disconnected after this."""
    close_s: float = 2.0
    """The longest time for the closing handshake of a WebSocket."""
    follow_s: float = 1.0
    """The interval in which a background response is polled."""
    unread_s: float = 120.0
    """How long a complete background response keeps its process if no client reads the response."""


_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


class WaitingComments:
    """Begins the response after one interval, and sends a comment after each further interval."""

    def __init__(self, request: web.Request, progress: Callable[[], str], interval_s: float) -> None:
        """`progress` describes what the request waits for."""
        self._request = request
        self._progress = progress
        self._interval_s = interval_s
        self._task: asyncio.Task[web.StreamResponse | None] | None = None
        self._ended = asyncio.Event()

    def start(self) -> None:
        self._task = asyncio.create_task(self._write(), name="comments while a request waits")

    async def end(self) -> web.StreamResponse | None:
        """Ends the comments, because the wait is over. Returns the response if it has begun."""
        self._ended.set()
        return None if self._task is None else await self._task

    def close(self) -> None:
        """Stops the comments. Called when the request has ended, with or without an error."""
        if self._task is None:
            return
        if not self._task.done():
            self._task.cancel()
        elif not self._task.cancelled():
            self._task.exception()  # retrieves the client's disconnect, which the request's task sees too

    async def _write(self) -> web.StreamResponse | None:
        if await self._ends_soon():
            return None
        response = web.StreamResponse(headers=_HEADERS)
        await response.prepare(self._request)
        while True:
            text = " ".join(self._progress().split())
            await response.write(f": {text}\n".encode())
            if await self._ends_soon():
                return response

    async def _ends_soon(self) -> bool:
        """Waits for the call of `end`, at most until the next comment is due."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._interval_s):
                await self._ended.wait()
        return self._ended.is_set()
