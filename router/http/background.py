"""Responses that a model makes in the background: its process stays until their clients have read them."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass
from typing import Final

from aiohttp import hdrs

from router.child.child import Child
from router.http.waiting import Patience
from router.model_entry import ModelEntry
from router.model_pool import ModelPool

RESPONSES: Final = "/v1/responses/"
"""Begins the path of a stored response."""


@dataclass(eq=False)
class FollowedResponse:
    """A response that a model makes in the background, or has made."""

    entry: ModelEntry
    child: Child
    path: str
    is_read: bool
    """Whether its client has got all of it, or does not want it any more."""
    following: asyncio.Task[None] | None = None


class FollowedResponses:
    """Background responses that their clients may still ask for; lives on the event loop."""

    def __init__(self, pool: ModelPool, goes_on: Callable[[Child, str], Awaitable[bool]], patience: Patience) -> None:
        """`goes_on` asks a server whether the response with this path is not complete."""
        self._pool = pool
        self._goes_on = goes_on
        self._patience = patience
        self._kept: dict[str, FollowedResponse] = {}
        """By id."""

    def find(self, path: str) -> FollowedResponse | None:
        """The response that a request with this path is about."""
        return self._kept.get(path.removeprefix(RESPONSES).partition("/")[0])

    async def is_last_use(self, made: FollowedResponse, method: str, path: str) -> bool:
        """Whether its client needs it no more if this request succeeds."""
        return method == hdrs.METH_DELETE or (path == made.path and not await self._goes_on(made.child, path))

    def keep(self, response_id: str, entry: ModelEntry, child: Child, lease: AsyncExitStack, *, is_read: bool) -> None:
        """Keeps the lease until the response has ended, then the process until its client has read it."""
        made = self._kept[response_id] = FollowedResponse(entry, child, RESPONSES + response_id, is_read)
        made.following = asyncio.create_task(self._follow(response_id, made, lease), name=f"follow {response_id}")

    async def _follow(self, response_id: str, made: FollowedResponse, lease: AsyncExitStack) -> None:
        def has_process() -> bool:
            return self._pool.has_process(made.child)

        with ExitStack() as stack:
            stack.callback(self._forget, response_id, made)
            async with lease:
                await asyncio.sleep(self._patience.follow_s)
                while has_process() and await self._goes_on(made.child, made.path):
                    await asyncio.sleep(self._patience.follow_s)
                stack.enter_context(self._pool.hold(made.child))
            with suppress(TimeoutError):
                async with asyncio.timeout(self._patience.unread_s):
                    while has_process() and not made.is_read and not self._pool.is_draining:
                        await asyncio.sleep(self._patience.follow_s)

    def _forget(self, response_id: str, made: FollowedResponse) -> None:
        """Forgets the response, unless a later one has its id: with vLLM, clients choose ids."""
        if self._kept.get(response_id) is made:
            del self._kept[response_id]
