"""The interface of another process that answers probes while the event loop is busy."""

import socket
from typing import Any, Protocol


class LentConnection(Protocol):
    """A connection on which the process waits for the next request."""

    def take_back(self) -> None:
        """The server must read from it again."""

    def drop(self) -> None:
        """It is closed."""


class ProbedServer(Protocol):
    """What the process needs of the HTTP server."""

    def find_healthy_head(self) -> bytes | None:
        """Status line and headers of the answer to a probe; None unless the server is ready."""

    async def adopt(self, client: socket.socket) -> None:
        """Serves an accepted connection."""

    @property
    def http(self) -> Any:
        """uvicorn's server."""

    @property
    def registry(self) -> Any:
        """The server's metrics: a registry of prometheus_client."""

    @property
    def is_probe_seen(self) -> bool:
        """Whether each probe must reach the server, so that its middleware sees it."""

    def unused_s(self) -> float:
        """Seconds since the last request for the model ended: 0 while one runs, infinite without one."""


class ProbeProcess(Protocol):
    """Used on the event loop."""

    async def start(self, server: ProbedServer) -> bool:
        """Has the process accept connections that wait longer than its delay.

        Returns False if it has exited.
        """

    def refresh(self) -> None:
        """The answer has changed."""

    def lend(self, connection: LentConnection, fd: int, client: str) -> bool:
        """Has it wait for the next request of an idle connection, and answer that if it is a probe."""

    async def end(self) -> None:
        """Takes all connections back."""
