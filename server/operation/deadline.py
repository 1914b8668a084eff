"""The time limit of a request (`--http-request-timeout`)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.errors import RequestError
from server.limits import flag_of


class RequestTimeoutError(RequestError):
    """The response took too long; its work in the engine is cancelled."""

    def __init__(self, limit_s: float) -> None:
        message = f"The answer took longer than {limit_s:g} s ({flag_of('request_timeout_s')})."
        super().__init__(message, status=504, type="TimeoutError")


class Deadline:
    """One per request; the time runs from its creation."""

    def __init__(self, limit_s: float) -> None:
        """0 sets no limit."""
        self._limit_s = limit_s
        self._when_s = asyncio.get_running_loop().time() + limit_s if limit_s else None

    @asynccontextmanager
    async def bound(self) -> AsyncIterator[None]:
        """Cancels the block when the time is up and raises RequestTimeoutError."""
        timeout = asyncio.timeout_at(self._when_s)
        try:
            async with timeout:
                yield
        except TimeoutError as err:
            if not timeout.expired():
                raise
            raise RequestTimeoutError(self._limit_s) from err
