"""Fixtures: a listening socket, the processes that a responder starts, and its answers."""

import socket
from collections.abc import Callable, Iterator

import psutil
import pytest

from startup.port.listener import listen
from startup.port.probe_http import Answer


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with listen(host="127.0.0.1", port=0, uds=None) as bound:
        yield bound


@pytest.fixture
def new_process() -> Callable[[], psutil.Process]:
    """A function that returns the only child process started since the test began."""
    others = set(psutil.Process().children())

    def find() -> psutil.Process:
        (process,) = set(psutil.Process().children()) - others
        return process

    return find


class Answers:
    """Answers of a responder: 200 to /livez, and 503 with the last message to all other requests."""

    def __init__(self, body: bytes = b'{"status":"starting"}') -> None:
        self._body = body

    def answer(self, path: str) -> Answer:
        return Answer(200) if path == "/livez" else Answer(503, self._body, retry_after_s=1)

    def follow(self, message: bytes) -> None:
        self._body = message
