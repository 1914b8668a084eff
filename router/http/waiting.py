"""Sends comments to the client of a stream while the model starts.

Client libraries ignore comments, but some take the blank line after a comment for an empty event.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

from server.http.transport.http_request import Request
from server.terms.http_body.response_body import EVENTS_TYPE


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


_HEADERS: Final = ((b"content-type", EVENTS_TYPE), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


class WaitingComments:
    """Begins the response after one interval, and sends a comment after each further interval."""

    def __init__(self, request: Request, progress: Callable[[], str], interval_s: float) -> None:
        """`progress` describes what the request waits for."""
        self._request = request
        self._progress = progress
        self._interval_s = interval_s
        self._task: asyncio.Task[bool] | None = None
        self._ended = asyncio.Event()

    def start(self) -> None:
        self._task = asyncio.create_task(self._write(), name="comments while a request waits")

    async def end(self) -> bool:
        """Ends the comments, because the wait is over. Returns whether the response has begun."""
        self._ended.set()
        return self._task is not None and await self._task

    def close(self) -> None:
        """Stops the comments. Called when the request has ended, with or without an error."""
        if self._task is not None:
            self._task.cancel()
            self._task = None  # its error refers to this object

    async def _write(self) -> bool:
        if await self._ends_soon():
            return False
        await self._request.begin(200, _HEADERS)
        while True:
            text = " ".join(self._progress().split())
            await self._request.write(f": {text}\n".encode())
            if await self._ends_soon():
                return True

    async def _ends_soon(self) -> bool:
        """Waits for the call of `end`, at most until the next comment is due."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._interval_s):
                await self._ended.wait()
        return self._ended.is_set()
