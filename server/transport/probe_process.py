"""The interface of another process that answers probes while the event loop is busy."""

import socket
from typing import Protocol


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
