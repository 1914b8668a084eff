"""The open connections: no more than may be, and those that ask for nothing make room for those that do."""

import logging
import resource
from itertools import islice
from time import monotonic
from typing import Protocol

logger = logging.getLogger(__name__)

_OTHER_FILES = 256
"""Room for what the process opens beside connections: a score at rest, and media, templates and logs under load."""
_LEAST_OTHER_FILES = 64
"""Where few files are allowed, a quarter of them is kept for that, but not less."""
_MOST_ASKED = 64
"""Of the idle ones so many are asked whether they can go; the others have their turn when the next one comes."""


_SPARE_FILES = 16
"""With fewer files left than this, accepting will soon fail: the kernel has no word for the client then but a reset."""
_WARN_EVERY_S = 60.0


class Evictable(Protocol):
    """A connection."""

    def evict(self) -> bool:
        """Closes it at once, or does not: when something of its last answer has still to be sent."""


class ConnectionTable:
    """One per server; used on the event loop only."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._open: set[Evictable] = set()
        self._idle: dict[Evictable, None] = {}
        """Those of them on which no request is being answered, the longest idle first."""
        self._silent_until_s = 0.0

    def add(self, connection: Evictable) -> bool:
        """Counts a new one; where there are too many the longest idle one goes. False where all of them are busy."""
        self._open.add(connection)
        has_room = len(self._open) <= self.most or self._evict_one()
        self._idle[connection] = None
        return has_room

    def discard(self, connection: Evictable) -> None:
        """The connection is gone."""
        self._open.discard(connection)
        self._idle.pop(connection, None)

    def note_file(self, fd: int) -> None:
        """A new connection's descriptor is the lowest that was free: near the limit, idle ones make room for more."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY or fd < soft - _SPARE_FILES:
            return
        self._evict_one()
        self._evict_one()
        if (now_s := monotonic()) >= self._silent_until_s:
            self._silent_until_s = now_s + _WARN_EVERY_S
            logger.warning(
                "nearly all of the %d files are open that this process may have: idle connections are closed, and "
                "clients cut off if that is not enough; raise the limit (`ulimit -n`), or lower --http-max-connections",
                soft,
            )

    def note_busy(self, connection: Evictable) -> None:
        """A request is being answered on it from now on."""
        self._idle.pop(connection, None)

    def note_idle(self, connection: Evictable) -> None:
        """Its requests are answered; it may be about to close, and take its time for that."""
        if connection in self._open:
            self._idle[connection] = None

    def _evict_one(self) -> bool:
        for connection in list(islice(self._idle, _MOST_ASKED)):
            del self._idle[connection]
            if connection.evict():
                self._open.discard(connection)  # it will be gone when the loop turns
                return True
            self._idle[connection] = None
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
    others = min(_OTHER_FILES, max(_LEAST_OTHER_FILES, soft // 4))
    return max(1, min(max_connections, soft - others))
