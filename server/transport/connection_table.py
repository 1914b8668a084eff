"""The open connections: no more than may be, and those that ask for nothing make room for those that do."""

import resource
from typing import Protocol

_OTHER_FILES = 256
"""What the process opens beside connections."""


class Evictable(Protocol):
    """A connection."""

    def evict(self) -> None:
        """Closes it; nothing is being answered on it."""


class ConnectionTable:
    """One per server; used on the event loop only."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.num_open = 0
        self._idle: dict[Evictable, None] = {}
        """Those on which no request is being answered, the longest idle first."""

    def add(self, connection: Evictable) -> bool:
        """Counts a new one; where there are too many the longest idle one goes. False where all of them are busy."""
        self.num_open += 1
        has_room = self.num_open <= self.most or self._evict_one()
        self._idle[connection] = None
        return has_room

    def discard(self, connection: Evictable) -> None:
        """The connection is gone."""
        self.num_open -= 1
        self._idle.pop(connection, None)

    def note_busy(self, connection: Evictable) -> None:
        """A request is being answered on it from now on."""
        self._idle.pop(connection, None)

    def note_idle(self, connection: Evictable) -> None:
        """Its requests are answered."""
        self._idle[connection] = None

    def _evict_one(self) -> bool:
        for connection in self._idle:
            del self._idle[connection]
            connection.evict()
            return True
        return False


def raise_file_limit(max_connections: int) -> int:
    """Lets this process open files for so many connections, or as many as it may; tells how many these are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return max_connections
    wanted = max_connections + _OTHER_FILES
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(max_connections, soft - _OTHER_FILES))
