"""The responses that may be retrieved and continued, within bounds; the oldest are dropped first."""

from collections import OrderedDict
from typing import NamedTuple

import msgspec


class StoredResponse(msgspec.Struct, frozen=True):
    """A response that has ended."""

    body: bytes
    """The response as JSON."""
    history: bytes
    """The conversation up to and including the response, as JSON; instructions are not part of it."""
    items: bytes
    """The items of the request's input as JSON."""
    events: tuple[bytes, ...] | None = None
    """The events of a response in the background that was streamed."""

    @property
    def num_bytes(self) -> int:
        """Size of all parts."""
        return len(self.body) + len(self.history) + len(self.items) + sum(map(len, self.events or ()))


class StoreBounds(NamedTuple):
    """Beyond these, the oldest responses are dropped."""

    max_responses: int
    max_bytes: int


class ResponseStore:
    """Keeps responses by id as long as this process lives; used on the event loop only."""

    def __init__(self, bounds: StoreBounds) -> None:
        self._bounds = bounds
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()
        self.num_bytes = 0
        """Size of all responses."""

    def put(self, response_id: str, response: StoredResponse) -> None:
        """Keeps a response, unless it is too large or its id is taken; drops the oldest beyond the bounds."""
        if response.num_bytes > self._bounds.max_bytes or response_id in self._responses:
            return
        self._responses[response_id] = response
        self.num_bytes += response.num_bytes
        while len(self._responses) > self._bounds.max_responses or self.num_bytes > self._bounds.max_bytes:
            _, oldest = self._responses.popitem(last=False)
            self.num_bytes -= oldest.num_bytes

    def get(self, response_id: str) -> StoredResponse | None:
        """A response; None if it is unknown or has been dropped."""
        return self._responses.get(response_id)

    def delete(self, response_id: str) -> bool:
        """Drops a response; returns whether it was there."""
        found = self._responses.pop(response_id, None)
        self.num_bytes -= 0 if found is None else found.num_bytes
        return found is not None
