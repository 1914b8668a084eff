"""Spreads the work of requests over the loop's iterations, so that a burst does not delay probes.

That is their beginning, and reading their bodies.
"""

import asyncio
from collections import deque

from starlette.types import Message, Receive

_REQUESTS_PER_TURN = 4
"""The beginning of a request takes about half a millisecond, a piece of a body (256 KB) half of that."""


class LoopTurns:
    """In the order of arrival; used on the event loop. A turn is one iteration of the loop.

    A request that exceeds the number per turn waits for a later one. The loop polls its sockets in between: a
    probe that arrives amid three hundred requests is answered after four of them.
    """

    def __init__(self) -> None:
        self._num_begun = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def wait(self) -> None:
        """Returns when the request may begin, or read on."""
        if not self._num_begun and not self._waiting:
            asyncio.get_running_loop().call_soon(self._turn)
        if self._num_begun < _REQUESTS_PER_TURN and not self._waiting:
            self._num_begun += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        await place

    def pace(self, receive: Receive) -> Receive:
        """`receive`, which waits for a turn before it reads more of a body."""
        has_more = False

        async def receive_in_turn() -> Message:
            nonlocal has_more
            if has_more:
                await self.wait()
            message = await receive()
            has_more = message.get("more_body", False)
            return message

        return receive_in_turn

    def _turn(self) -> None:
        self._num_begun = 0
        while self._waiting and self._num_begun < _REQUESTS_PER_TURN:
            place = self._waiting.popleft()
            if not place.cancelled():
                place.set_result(None)
                self._num_begun += 1
        if self._num_begun:
            asyncio.get_running_loop().call_soon(self._turn)
