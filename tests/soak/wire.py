"""Clients of a soak that speak HTTP as nobody should, byte by byte: too slowly, too much, wrongly, or not at all."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from random import Random
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from tests.soak.judgement import judge_answer
from tests.soak.ledger import Ledger
from vllm_cli.bench.liveness.payloads import Destination
from vllm_cli.bench.prompts import build_prompt
from vllm_cli.bench.request_format import request_headers

_MAX_HURRY_S: Final = 10.0
"""How long a client waits for what a server says to nonsense, at most."""
_NARROW_BYTES: Final = 4096
_SIP_BYTES: Final = 1024
_SIP_S: Final = 0.02
_HUGE_BYTES: Final = 40 << 20
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
    """Raw connections to one server; none outlives its call."""

    def __init__(self, destination: Destination, ledger: Ledger, *, timeout_s: float, max_lurk_s: float) -> None:
        self._destination = destination
        self._ledger = ledger
        self._timeout_s = timeout_s
        self._max_lurk_s = max_lurk_s
        self._hurry_s = min(_MAX_HURRY_S, max_lurk_s)
        place = urlsplit(destination.base_url)
        self._host, self._port = place.hostname or "", place.port or 80

    async def talk_nonsense(self, random: Random) -> None:
        """Bytes that are no request."""
        await self._provoke("malformed", random.choice(_MALFORMED))

    async def announce_too_much(self, _: Random) -> None:
        """A body that is refused before any of it is sent."""
        await self._provoke("oversized", self._head("/v1/completions", content_length=10**9))

    async def send_too_much(self, _: Random) -> None:
        """A body of unknown length that does not end."""

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
            writer.write(self._head("/v1/completions", transfer_encoding="chunked"))
            answer = asyncio.create_task(reader.read())
            try:
                for _ in range(_HUGE_BYTES // _CHUNK_BYTES):
                    writer.write(b"%x\r\n" % _CHUNK_BYTES + b" " * _CHUNK_BYTES + b"\r\n")
                    await writer.drain()
                    if answer.done():
                        break
                return await asyncio.wait_for(answer, self._hurry_s)
            except (ConnectionError, TimeoutError):  # it has closed, and what it said may be gone; or it says nothing
                return b""
            finally:
                answer.cancel()

        await self._converse("oversized", talk)

    async def pipeline(self, random: Random) -> None:
        """Several requests in one go; every one must be answered."""
        body = {"prompt": build_prompt(8, seed=str(random.random())), "max_tokens": 4}
        num_requests = random.randint(2, 6)
        requests = [self._request("/v1/completions", body) for _ in range(num_requests - 1)]
        requests.append(self._request("/v1/completions", body, connection="close"))

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
            writer.write(b"".join(requests))
            return await asyncio.wait_for(reader.read(), self._timeout_s)

        answer = await self._hear("pipelined", talk)
        if answer is None:
            return
        statuses = [int(status) for status in _STATUS.findall(answer)]
        for status in statuses:
            self._enter("pipelined", status, b"")
        for _ in range(num_requests - len(statuses)):
            self._ledger.enter("pipelined", "lost", message=f"{num_requests} asked, answers: {statuses}")

    async def read_slowly(self, random: Random) -> None:
        """A long stream through a narrow window, in small sips; it must come in full."""
        body = {"prompt": build_prompt(8, seed=str(random.random())), "max_tokens": 48, "n": 2, "logprobs": 5}
        request = self._request("/v1/completions", body | {"stream": True, "temperature": 1.0}, connection="close")

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
            writer.write(request)
            parts = []
            while part := await asyncio.wait_for(reader.read(_SIP_BYTES), self._timeout_s):
                parts.append(part)
                await asyncio.sleep(_SIP_S)
            return b"".join(parts)

        await self._converse("slow reader", talk, is_narrow=True)

    async def read_nothing(self, random: Random) -> None:
        """A stream that nobody reads, and a client that is gone in the end."""
        body = {"prompt": "a", "max_tokens": 200, "n": 2, "logprobs": 5, "stream": True, "temperature": 1.0}
        await self._lurk("stalled reader", self._request("/v1/completions", body), random)

    async def say_nothing(self, random: Random) -> None:
        """A connection that is kept for nothing, before any request or after one."""
        await self._lurk("idle", random.choice((b"", b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")), random)

    async def break_off(self, random: Random) -> None:
        """A request that stops in its headers or in its body."""
        whole = self._request("/tokenize", {"prompt": "Once upon a time"})
        await self._lurk("half a request", whole[: random.randrange(1, len(whole))], random)

    async def _lurk(self, kind: str, opening: bytes, random: Random) -> None:
        """Say something, read nothing, and leave after a while."""
        stay_s = random.uniform(0, self._max_lurk_s)

        async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
            writer.write(opening)
            await asyncio.sleep(stay_s)
            return b""

        await self._converse(kind, talk, is_narrow=True)

    async def _provoke(self, kind: str, data: bytes) -> None:
        """Say something and hear what comes, if anything does."""

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
            writer.write(data)
            parts = []
            try:
                async with asyncio.timeout(self._hurry_s):
                    while part := await reader.read(1 << 16):
                        parts.append(part)
            except (TimeoutError, ConnectionError):
                pass
            return b"".join(parts)

        await self._converse(kind, talk)

    async def _converse(self, kind: str, talk: "_Talk", *, is_narrow: bool = False) -> None:
        """One exchange, and how it went: by the first answer, or `left` where there is none."""
        answer = await self._hear(kind, talk, is_narrow=is_narrow)
        if answer is None:
            return
        status = _STATUS.match(answer)
        if status is None:
            self._ledger.enter(kind, "left")
        else:
            self._enter(kind, int(status[1]), answer)

    async def _hear(self, kind: str, talk: "_Talk", *, is_narrow: bool = False) -> bytes | None:
        """What the server said; None where it could not be heard, which is entered."""
        try:
            async with self._connect(is_narrow=is_narrow) as (reader, writer):
                return await talk(reader, writer)
        except (OSError, TimeoutError) as error:
            self._ledger.enter(kind, "lost", message=f"{type(error).__name__}: {error}")
            return None

    def _enter(self, kind: str, status: int, answer: bytes) -> None:
        head, _, content = answer.partition(b"\r\n\r\n")
        is_stream = b"text/event-stream" in head.lower()
        ending, message = judge_answer(status, _join_chunks(content) if is_stream else content, is_stream=is_stream)
        self._ledger.enter(kind, ending, status=status, message=message)

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
        fields = request_headers(self._destination.api_key) | {"Host": f"{self._host}:{self._port}"}
        fields |= {name.replace("_", "-").title(): str(value) for name, value in headers.items()}
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        return "\r\n".join([*lines, "", ""]).encode()


_Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, bytes]]


def _join_chunks(content: bytes) -> bytes:
    """A body without its chunked framing, as far as it came."""
    parts = []
    while content:
        size, _, content = content.partition(b"\r\n")
        num_bytes = int(size or b"0", 16)
        parts.append(content[:num_bytes])
        content = content[num_bytes + 2 :]
    return b"".join(parts)
