"""Sends comments to the client of a stream while its model starts; client libraries ignore them."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from aiohttp import web

if TYPE_CHECKING:
    from aiohttp.web import StreamResponse


class Patience(NamedTuple):
    """The limits in seconds, which tests shorten."""

    comment_s: float = 1.0
    """Between two comments in a stream whose model starts."""
    stall_s: float = 30.0
    """How long a client may read nothing, and a WebSocket be silent, while others wait for the memory."""
    close_s: float = 2.0
    """How long the end of a WebSocket may take."""
    follow_s: float = 1.0
    """Between two looks at a response in the background."""
    unread_s: float = 120.0
    """How long such a response that has ended is kept for its client."""


_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


class WaitingComments:
    """Begins the response after an interval, and sends a comment after each further one."""

    def __init__(self, request: web.Request, progress: Callable[[], str], interval_s: float) -> None:
        """`progress` names the step that the request waits for."""
        self._request = request
        self._progress = progress
        self._interval_s = interval_s
        self._task: asyncio.Task[StreamResponse | None] | None = None
        self._ended = asyncio.Event()

    def start(self) -> None:
        """The request waits from now on."""
        self._task = asyncio.create_task(self._write(), name="comments while a request waits")

    async def end(self) -> "StreamResponse | None":
        """The request waits no longer; returns the response that has begun, None if there is none."""
        self._ended.set()
        return None if self._task is None else await self._task

    def close(self) -> None:
        """The request has ended, in whatever way."""
        if self._task is None:
            return
        if not self._task.done():
            self._task.cancel()
        elif not self._task.cancelled():
            self._task.exception()  # the client's disconnect, which the request's task sees too

    async def _write(self) -> "StreamResponse | None":
        if await self._ends_soon():
            return None
        response = web.StreamResponse(headers=_HEADERS)
        await response.prepare(self._request)
        while True:
            text = " ".join(self._progress().split())
            await response.write(f": {text}\n\n".encode())
            if await self._ends_soon():
                return response

    async def _ends_soon(self) -> bool:
        """Waits for the end, at most until the next comment."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._interval_s):
                await self._ended.wait()
        return self._ended.is_set()
