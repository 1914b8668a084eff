"""Connections to models' servers. One is reused only if it is proven to be idle.

aiohttp reuses each open connection. A response that nobody has asked for, and that arrives while a connection
is idle, would be the answer to the next client's request.
"""

import select
from typing import Any, Final
from weakref import WeakSet

import aiohttp

_KEEP_ALIVE_S: Final = 2.0
"""Seconds after which the router closes an idle connection. uvicorn would close it after 5 s."""


class _ProvenIdle(aiohttp.BaseConnector):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._used: WeakSet[Any] = WeakSet()

    async def connect(self, *arguments: Any, **options: Any) -> Any:
        """Returns a new connection, or an idle one. Closes connections that have got bytes or have ended."""
        while True:
            connection = await super().connect(*arguments, **options)
            protocol = connection.protocol
            if protocol not in self._used:
                self._used.add(protocol)
                return connection
            if _is_idle(protocol):
                return connection
            connection.close()


class UnixConnections(_ProvenIdle, aiohttp.UnixConnector):
    """Connections to a server of ours on a UNIX socket."""

    def __init__(self, path: str, keep_alive_s: float = _KEEP_ALIVE_S) -> None:
        super().__init__(path, limit=0, keepalive_timeout=keep_alive_s)


class ForeignConnections(_ProvenIdle, aiohttp.TCPConnector):
    """Connections to a user's server.

    Without TLS, each is used once, because a late response can also arrive after the next request was sent. A
    TLS handshake takes too long for that.
    """

    def __init__(self, base_url: str) -> None:
        is_reused = base_url.startswith("https:")
        reuse: dict[str, Any] = {"keepalive_timeout": _KEEP_ALIVE_S} if is_reused else {"force_close": True}
        super().__init__(limit=0, **reuse)


def _is_idle(protocol: Any) -> bool:
    """Whether no byte has arrived, read or unread, since the last response."""
    transport = protocol.transport
    if protocol.should_close or transport is None:
        return False
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return not poll.poll(0)
