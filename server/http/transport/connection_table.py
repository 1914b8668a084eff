"""Limits the number of open connections. Closes idle connections to make room for new ones."""

import logging
import resource
from itertools import islice
from time import monotonic
from typing import Protocol

logger = logging.getLogger(__name__)

_OTHER_FILES = 256
"""The descriptors reserved for other files. An idle server has about 20 such files, and more under load
(media, templates, logs)."""
_LEAST_OTHER_FILES = 64
"""With a low limit of files, a quarter of the descriptors is reserved instead, but at least this many."""
_MAX_ASKED = 64
"""The most idle connections that the table tries to close for one new connection."""

_SPARE_FILES = 16
"""With fewer free descriptors, accepting connections will soon fail, and the kernel will reset new ones."""
_WARN_EVERY_S = 60.0


class Evictable(Protocol):
    """A connection that can be closed to make room."""

    def evict(self) -> bool:
        """Closes the connection immediately. Returns False if bytes of its last response are unsent."""


class ConnectionTable:
    """The connections of one server, used on the event loop only."""

    def __init__(self, max_connections: int) -> None:
        self.max_connections = max_connections
        self._open: set[Evictable] = set()
        self._idle: dict[Evictable, None] = {}
        """Open connections without a running request. The longest idle connection is first."""
        self._next_warning_s = 0.0

    def add(self, connection: Evictable) -> bool:
        """Adds a connection. If there are too many connections, closes the longest idle one.

        Returns False if there are too many and no idle connection can be closed.
        """
        self._open.add(connection)
        has_room = len(self._open) <= self.max_connections or self._evict_one()
        self._idle[connection] = None
        return has_room

    def discard(self, connection: Evictable) -> None:
        self._open.discard(connection)
        self._idle.pop(connection, None)

    def check_free_files(self, fd: int) -> None:
        """Closes idle connections if few file descriptors are free.

        `fd` is a new connection's descriptor. The kernel assigns the lowest free number, so `fd` shows how
        many descriptors are in use.
        """
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY or fd < soft - _SPARE_FILES:
            return
        self._evict_one()
        self._evict_one()
        if (now_s := monotonic()) >= self._next_warning_s:
            self._next_warning_s = now_s + _WARN_EVERY_S
            logger.warning(
                "nearly all of the %d file descriptors of this process are in use. Idle connections are closed. If "
                "that is not enough, new ones are reset. Raise `ulimit -n`, or lower --http-max-connections",
                soft,
            )

    def note_busy(self, connection: Evictable) -> None:
        """Called when a request starts on the connection."""
        self._idle.pop(connection, None)

    def note_idle(self, connection: Evictable) -> None:
        """Called when no request runs on the connection. The connection may linger before it closes."""
        if connection in self._open:
            self._idle[connection] = None

    def _evict_one(self) -> bool:
        for connection in list(islice(self._idle, _MAX_ASKED)):
            del self._idle[connection]
            if connection.evict():
                self._open.discard(connection)  # the connection closes in the next turn of the loop
                return True
            self._idle[connection] = None
        return False


def raise_file_limit(max_connections: int) -> int:
    """Raises the limit of open files for `max_connections`. Returns how many connections the limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return max_connections
    wanted = max_connections + _OTHER_FILES
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    others = min(_OTHER_FILES, max(_LEAST_OTHER_FILES, soft // 4))
    return max(1, min(max_connections, soft - others))
