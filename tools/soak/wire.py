"""Misbehaving clients of a soak, on raw connections: slow, oversized, malformed, idle."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from random import Random
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from tools.soak.ledger import Ledger, judge_answer
from vllm_cli.bench.request_format import Destination, build_prompt

_MAX_ANSWER_S: Final = 10.0
"""Maximum wait for the response to malformed bytes."""
_NARROW_BYTES: Final = 4096
_READ_BYTES: Final = 1024
_READ_PAUSE_S: Final = 0.02
_OVERSIZED_BYTES: Final = 40 << 20
_CHUNK_BYTES: Final = 1 << 18
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})")
_MALFORMED: Final = (
    b"\0" * 512,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 300,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET  HTTP/1.1\r\n\r\n",
    b"HACK /health HTTP/1.1\r\nHost: x\r\n\r\n",
    b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /\xff%ff HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: x\r\nNo colon here\r\n\r\n",
    b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 400 + b"\r\n",
    b"GET /health HTTP/1.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
)


class WireClient:
    """Raw connections to one server; each call closes its own."""

    def __init__(self, destination: Destination, ledger: Ledger, *, timeout_s: float, max_hold_s: float) -> None:
        self._destination = destination
        self._ledger = ledger
        self._timeout_s = timeout_s
        self._max_hold_s = max_hold_s
        self._answer_s = min(_MAX_ANSWER_S, max_hold_s)
        address = urlsplit(destination.base_url)
        self._host, self._port = address.hostname or "", address.port or 80

    async def send_malformed(self, random: Random) -> None:
        """Sends bytes that are not a request."""
        await self._send_and_read("malformed", random.choice(_MALFORMED))

    async def announce_oversized(self, _: Random) -> None:
        """Sends a Content-Length that is rejected before the body is sent."""
        await self._send_and_read("oversized", self._head("/v1/completions", content_length=10**9))

    async def send_oversized(self, _: Random) -> None:
        """Sends a body of unknown length that exceeds every limit."""

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
            writer.write(self._head("/v1/completions", transfer_encoding="chunked"))
            answer = asyncio.create_task(reader.read())
            try:
                for _ in range(_OVERSIZED_BYTES // _CHUNK_BYTES):
                    writer.write(b"%x\r\n" % _CHUNK_BYTES + b" " * _CHUNK_BYTES + b"\r\n")
                    await writer.drain()
                    if answer.done():
                        break
                return await asyncio.wait_for(answer, self._answer_s)
            except (ConnectionError, TimeoutError):  # closed, possibly with the response lost; or no response
                return b""
            finally:
                answer.cancel()

        await self._exchange("oversized", talk)

    async def pipeline(self, random: Random) -> None:
        """Sends several requests at once; each must be answered."""
        body = {"prompt": build_prompt(8, seed=str(random.random())), "max_tokens": 4}
        num_requests = random.randint(2, 6)
        requests = [self._request("/v1/completions", body) for _ in range(num_requests - 1)]
        requests.append(self._request("/v1/completions", body, connection="close"))

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
            writer.write(b"".join(requests))
            return await asyncio.wait_for(reader.read(), self._timeout_s)

        answer = await self._receive("pipelined", talk)
        if answer is None:
            return
        statuses = [int(status) for status in _STATUS.findall(answer)]
        for status in statuses:
            self._record("pipelined", status, b"")
        for _ in range(num_requests - len(statuses)):
            self._ledger.record("pipelined", "lost", message=f"{num_requests} asked, answers: {statuses}")

    async def read_slowly(self, random: Random) -> None:
        """Reads a long stream slowly through a small receive buffer; it must arrive completely."""
        body = {"prompt": build_prompt(8, seed=str(random.random())), "max_tokens": 48, "n": 2, "logprobs": 5}
        request = self._request("/v1/completions", body | {"stream": True, "temperature": 1.0}, connection="close")

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
            writer.write(request)
            parts = []
            while part := await asyncio.wait_for(reader.read(_READ_BYTES), self._timeout_s):
                parts.append(part)
                await asyncio.sleep(_READ_PAUSE_S)
            return b"".join(parts)

        await self._exchange("slow reader", talk, is_narrow=True)

    async def read_nothing(self, random: Random) -> None:
        """Requests a stream, never reads it, and disconnects."""
        body = {"prompt": "a", "max_tokens": 200, "n": 2, "logprobs": 5, "stream": True, "temperature": 1.0}
        await self._hold("stalled reader", self._request("/v1/completions", body), random)

    async def hold_idle(self, random: Random) -> None:
        """Holds an idle connection, before any request or after one."""
        await self._hold("idle", random.choice((b"", b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")), random)

    async def send_half(self, random: Random) -> None:
        """Sends a request that stops in its headers or in its body."""
        whole = self._request("/tokenize", {"prompt": "Once upon a time"})
        await self._hold("half a request", whole[: random.randrange(1, len(whole))], random)

    async def _hold(self, kind: str, opening: bytes, random: Random) -> None:
        """Sends bytes, reads nothing, and disconnects after a random time."""
        stay_s = random.uniform(0, self._max_hold_s)

        async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
            writer.write(opening)
            await asyncio.sleep(stay_s)
            return b""

        await self._exchange(kind, talk, is_narrow=True)

    async def _send_and_read(self, kind: str, data: bytes) -> None:
        """Sends bytes and reads the response, if there is one."""

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
            writer.write(data)
            parts = []
            try:
                async with asyncio.timeout(self._answer_s):
                    while part := await reader.read(1 << 16):
                        parts.append(part)
            except (TimeoutError, ConnectionError):
                pass
            return b"".join(parts)

        await self._exchange(kind, talk)

    async def _exchange(self, kind: str, talk: "_Talk", *, is_narrow: bool = False) -> None:
        """Runs one exchange and records its ending: that of the first response, `left` without one."""
        answer = await self._receive(kind, talk, is_narrow=is_narrow)
        if answer is None:
            return
        status = _STATUS.match(answer)
        if status is None:
            self._ledger.record(kind, "left")
        else:
            self._record(kind, int(status[1]), answer)

    async def _receive(self, kind: str, talk: "_Talk", *, is_narrow: bool = False) -> bytes | None:
        """The received bytes; records a lost connection and returns None."""
        try:
            async with self._connect(is_narrow=is_narrow) as (reader, writer):
                return await talk(reader, writer)
        except (OSError, TimeoutError) as error:
            self._ledger.record(kind, "lost", message=f"{type(error).__name__}: {error}")
            return None

    def _record(self, kind: str, status: int, answer: bytes) -> None:
        head, _, content = answer.partition(b"\r\n\r\n")
        is_stream = b"text/event-stream" in head.lower()
        ending, message = judge_answer(status, _join_chunks(content) if is_stream else content, is_stream=is_stream)
        self._ledger.record(kind, ending, status=status, message=message)

    @asynccontextmanager
    async def _connect(self, *, is_narrow: bool) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        plain = socket.socket()
        plain.setblocking(False)
        if is_narrow:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _NARROW_BYTES)
        try:
            await asyncio.get_running_loop().sock_connect(plain, (self._host, self._port))
        except BaseException:
            plain.close()
            raise
        reader, writer = await asyncio.open_connection(sock=plain, limit=_NARROW_BYTES if is_narrow else 1 << 16)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    def _request(self, path: str, body: dict[str, Any], **headers: str) -> bytes:
        data = msgspec.json.encode({"model": self._destination.model} | body)
        return self._head(path, content_length=len(data), **headers) + data

    def _head(self, path: str, **headers: object) -> bytes:
        fields = self._destination.headers | {"Host": f"{self._host}:{self._port}"}
        fields |= {name.replace("_", "-").title(): str(value) for name, value in headers.items()}
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        return "\r\n".join([*lines, "", ""]).encode()


_Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, bytes]]


def _join_chunks(content: bytes) -> bytes:
    """The received part of a body, without chunked framing."""
    parts = []
    while content:
        size, _, content = content.partition(b"\r\n")
        num_bytes = int(size or b"0", 16)
        parts.append(content[:num_bytes])
        content = content[num_bytes + 2 :]
    return b"".join(parts)
