"""Sends many requests over a few connections and counts the responses."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from tests.e2e.request_fuzzer import FuzzedRequest

_ANSWER_S = 300.0


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
    port: int, make: Callable[[int], FuzzedRequest], seeds: Iterable[int], *, num_clients: int = 8
) -> FuzzCounts:
    """Sends one request per seed; on each connection one after another."""
    counts = FuzzCounts()
    shared = iter(seeds)

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(num_clients):
                group.create_task(_Client(port, make, counts).run(shared))

    asyncio.run(run())
    return counts


class _Client:
    """One connection, reopened when the server closes it."""

    def __init__(self, port: int, make: Callable[[int], FuzzedRequest], counts: FuzzCounts) -> None:
        self._port = port
        self._make = make
        self._counts = counts
        self._writer: asyncio.StreamWriter | None = None

    async def run(self, seeds: Iterator[int]) -> None:
        for seed in seeds:
            request = self._make(seed)
            try:
                async with asyncio.timeout(_ANSWER_S):
                    status, body = await self._exchange(request)
            except TimeoutError:
                status, body = 599, b"no answer"
                self._close()
            self._counts.note(seed, request, status, body)
        self._close()

    async def _exchange(self, request: FuzzedRequest) -> tuple[int, bytes]:
        for _ in range(3):
            if self._writer is None:
                self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
            try:
                self._writer.write(_encode(request))
                return await self._read(request)
            except (ConnectionError, asyncio.IncompleteReadError):
                self._close()  # the server may close an idle connection while the request is in flight
        return 598, b"the connection was closed without an answer, three times"

    async def _read(self, request: FuzzedRequest) -> tuple[int, bytes]:
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        status = int(head.split(b" ", 2)[1])
        if b"transfer-encoding: chunked" in head:
            body = await self._read_chunks()
        elif request.method == "HEAD" or status in (204, 304):
            body = b""
        else:
            body = await self._reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
        if b"connection: close" in head:
            self._close()
        return status, body

    async def _read_chunks(self) -> bytes:
        body = b""
        while size := int(await self._reader.readline(), 16):
            body += (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readline()
        return body

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _encode(request: FuzzedRequest) -> bytes:
    lines = [f"{request.method} {request.path} HTTP/1.1", "host: x", f"content-length: {len(request.body)}"]
    if request.content_type:
        lines.append(f"content-type: {request.content_type}")
    return "\r\n".join([*lines, "", ""]).encode() + request.body


def _envelope_fault(status: int, body: bytes) -> bytes | None:
    try:
        error = json.loads(body)["error"]
        is_good = isinstance(error["message"], str) and error["message"] and error["code"] == status
    except (ValueError, LookupError, TypeError):
        is_good = False
    return None if is_good else body
