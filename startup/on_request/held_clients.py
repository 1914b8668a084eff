"""Clients whose request waits until the server can answer it; their bytes stay unread."""

import math
import select
import selectors
from collections.abc import Iterable
from typing import Final

from startup.probes.acceptor import Client

MAX_HELD: Final = 1024


class HeldClients:
    """In order of arrival. A client that leaves is forgotten.

    All are watched by one epoll descriptor of their own, since those with unread bytes would always be
    readable.
    """

    def __init__(self, selector: selectors.BaseSelector, wait_s: float | None) -> None:
        """`wait_s` is how long a client waits; None for no limit."""
        self._wait_s = math.inf if wait_s is None else wait_s
        self._clients: dict[int, Client] = {}
        """By descriptor."""
        self._leaving = select.epoll()
        selector.register(self._leaving, selectors.EVENT_READ, self)

    def __len__(self) -> int:
        return len(self._clients)

    def add(self, client: Client, now: float) -> None:
        """Holds a client that nothing else watches."""
        client.deadline_s = now + self._wait_s
        self._clients[client.connection.fileno()] = client
        self._leaving.register(client.connection, select.EPOLLRDHUP)

    def put_first(self, clients: Iterable[Client], now: float) -> None:
        """Holds clients that came before all others."""
        others = self._clients
        self._clients = {}
        for client in clients:
            self.add(client, now)
        self._clients |= others

    def take_all(self) -> list[Client]:
        """The clients, oldest first; none is held any more."""
        clients = list(self._clients.values())
        for client in clients:
            self._leaving.unregister(client.connection)
        self._clients.clear()
        return clients

    def take_expired(self, now: float) -> list[Client]:
        """Those that have waited for too long; they are held no more."""
        expired = [client for client in self._clients.values() if client.deadline_s <= now]
        for client in expired:
            self._leaving.unregister(client.connection)
            del self._clients[client.connection.fileno()]
        return expired

    def advance(self) -> None:
        """Forgets those that have closed their connection, or the half on which they send."""
        for fd, _ in self._leaving.poll(0):
            client = self._clients.pop(fd)
            self._leaving.unregister(fd)
            client.connection.close()

    def close(self) -> None:
        """Closes all connections."""
        for client in self.take_all():
            client.connection.close()
        self._leaving.close()
