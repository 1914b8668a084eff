"""Polls background responses, and keeps the model's process until the client has read the response."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass
from typing import Final

from router.child.child import Child
from router.http.waiting import Patience
from router.model_entry import ModelEntry
from router.model_pool import ModelPool

RESPONSES: Final = "/v1/responses/"
"""The beginning of the path of a stored response."""


@dataclass(eq=False)
class FollowedResponse:
    """A background response. The model may still be generating it."""

    entry: ModelEntry
    child: Child
    path: str
    is_read: bool
    """Whether the client has read all of the response."""
    following: asyncio.Task[None] | None = None


class FollowedResponses:
    """The background responses that clients may still request. Used on the event loop."""

    def __init__(self, pool: ModelPool, goes_on: Callable[[Child, str], Awaitable[bool]], patience: Patience) -> None:
        """`goes_on` returns whether the server is still generating the response with this path."""
        self._pool = pool
        self._goes_on = goes_on
        self._patience = patience
        self._kept: dict[str, FollowedResponse] = {}
        """Response id -> the response."""

    def find(self, path: str) -> FollowedResponse | None:
        """The background response that the path names. None if there is none."""
        return self._kept.get(path.removeprefix(RESPONSES).partition("/")[0])

    def keep(self, response_id: str, entry: ModelEntry, child: Child, lease: AsyncExitStack, *, is_read: bool) -> None:
        """Keeps the lease until the response is complete, and the process until the client has read it."""
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
        """Forgets the response, unless its id has been used again. Clients of vLLM can choose ids."""
        if self._kept.get(response_id) is made:
            del self._kept[response_id]
