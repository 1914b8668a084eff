"""Sends many requests over a few connections and counts the responses."""

import http.client
import json
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import local

from tests.e2e.request_fuzzer import FuzzedRequest

_ANSWER_S = 300.0
_NUM_CLIENTS = 8


@dataclass
class FuzzCounts:
    """The responses of a run."""

    by_status: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    """Seeds and responses of unexpected outcomes."""

    @property
    def num_requests(self) -> int:
        return sum(self.by_status.values())

    def note(self, seed: int, request: FuzzedRequest, status: int, body: bytes) -> None:
        self.by_status[status] += 1
        problem = None
        if status >= 500:
            problem = body
        elif status >= 400 and request.method != "HEAD":
            problem = _envelope_fault(status, body)
        elif b'"type":"InternalServerError"' in body:
            problem = body[-500:]
        if problem is not None:
            self.failures.append(
                f"seed {seed}: {request.method} {request.path} {request.body[:2000]!r} -> {status} {problem!r}"
            )


def send_all(
    port: int, make: Callable[[int], FuzzedRequest], seeds: Iterable[int], *, shed: tuple[int, ...] = ()
) -> FuzzCounts:
    """Sends one request per seed; on each connection one after another.

    `shed` are statuses with which an overloaded server may refuse any of them.
    """
    counts, own = FuzzCounts(), local()
    connections: list[http.client.HTTPConnection] = []

    def connect() -> None:
        own.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_S)
        connections.append(own.connection)

    def send(seed: int) -> tuple[int, FuzzedRequest, int, bytes]:
        request = make(seed)
        return seed, request, *_exchange(own.connection, request)

    with ThreadPoolExecutor(_NUM_CLIENTS, initializer=connect) as clients:
        for sent in clients.map(send, seeds):
            if sent[2] not in shed:
                counts.note(*sent)
    for connection in connections:
        connection.close()
    return counts


def _exchange(connection: http.client.HTTPConnection, request: FuzzedRequest) -> tuple[int, bytes]:
    headers = {"content-type": request.content_type} if request.content_type else {}
    for _ in range(3):
        try:
            connection.request(request.method, request.path, request.body, headers)
            response = connection.getresponse()
            body = response.read()
        except TimeoutError:
            connection.close()
            return 599, b"no answer"
        except (ConnectionError, http.client.HTTPException):
            connection.close()  # the server may close an idle connection while the request is in flight
        else:
            return response.status, body
    return 598, b"the connection was closed without an answer, three times"


def _envelope_fault(status: int, body: bytes) -> bytes | None:
    try:
        error = json.loads(body)["error"]
        is_good = isinstance(error["message"], str) and error["message"] and error["code"] == status
    except (ValueError, LookupError, TypeError):
        is_good = False
    return None if is_good else body
