"""Clients that open a connection per request, again and again."""

import threading
from typing import Self

from tests.startup.vllm.fake_start import get
from tests.waiting import wait_until


class RepeatingClients:
    """A thread per path, until the `with` block ends."""

    def __init__(self, port: int, *paths: str) -> None:
        self._port = port
        self._has_ended = threading.Event()
        self.statuses: list[list[int]] = [[] for _ in paths]
        """The answers to each client, in order; 0 for a refused connection."""
        self.lost: list[str] = []
        """Connections that were reset, or closed without an answer."""
        clients = zip(paths, self.statuses, strict=True)
        self._threads = [threading.Thread(target=self._run, args=client) for client in clients]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        for thread in self._threads:
            thread.join()

    def wait_for_more(self, number: int, *statuses: int) -> None:
        """Waits until each of these statuses was answered so often again."""
        wanted = {status: self._count(status) + number for status in statuses}
        wait_until(lambda: all(self._count(status) >= wanted[status] for status in statuses))

    def _count(self, status: int) -> int:
        return sum(answers.count(status) for answers in self.statuses)

    def _run(self, path: str, statuses: list[int]) -> None:
        while not self._has_ended.is_set():
            try:
                statuses.append(get(self._port, path)[0])
            except ConnectionRefusedError:
                statuses.append(0)
            except OSError as err:
                self.lost.append(repr(err))
