"""Notices that a client has disconnected while its request's body is not being read."""

import asyncio
import select
from typing import Final

_INTERVAL_S: Final = 0.25
_GONE: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR


class DepartureWatch:
    """Looks at a connection several times a second; ends it if the client has closed it.

    aiohttp notices that by itself while it reads. It stops reading when the beginning of a body waits to be
    taken, for a model that starts or for a server that is slow. While megabytes of the body are still on
    their way, the kernel does not tell that the client has left: that is noticed when they are read.
    """

    def __init__(self, transport: asyncio.Transport | None) -> None:
        self._transport = transport
        self._poll = select.poll()
        self._timer: asyncio.TimerHandle | None = None
        found = None if transport is None else transport.get_extra_info("socket")
        if found is not None:
            self._poll.register(found.fileno(), select.POLLRDHUP)
            self._arm()

    def close(self) -> None:
        """Stops watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_INTERVAL_S, self._look)

    def _look(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if any(event & _GONE for _, event in self._poll.poll(0)):
            self._transport.abort()
        else:
            self._arm()
